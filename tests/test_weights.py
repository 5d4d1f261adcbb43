"""Where models are found, what may be fetched, and files that come whole or not at all."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from gpuserver.config import Settings
from gpuserver.errors import ProviderUnavailable
from gpuserver.providers import weights
from gpuserver.providers.weights.download import already, fetch
from gpuserver.providers.weights.offers import Offer, RemoteFile, wanted
from tests.file_server import FileServer, serving

Make = Callable[..., Settings]
DATA = os.urandom(3 << 20)


@pytest.fixture
def files() -> Iterator[FileServer]:
    with serving(FileServer()) as files:
        yield files


def unheard(here: int, total: int) -> None:
    """Nobody looks at this download."""


def offer(files: FileServer, data: bytes = DATA, sha256: str | None = None) -> Offer:
    files.files["/weights"] = data
    digest = hashlib.sha256(data).hexdigest() if sha256 is None else sha256
    return Offer("1", (RemoteFile("deep/w.bin", f"{files.url}/weights", len(data), digest),))


# Finding


def test_a_folder_is_itself_and_a_pulled_name_its_folder(
    make_settings: Make, tmp_path: Path
) -> None:
    settings = make_settings()
    mine, pulled = tmp_path / "mine", settings.data_dir / "models" / "org--name"
    for path in (mine, pulled):
        path.mkdir(parents=True)
    assert weights.folder(str(mine), settings) == mine
    assert weights.folder("org/name", settings) == pulled
    elsewhere = make_settings(models_dir=tmp_path / "big disk")
    assert weights.models_dir(elsewhere) == tmp_path / "big disk"


@pytest.mark.parametrize(
    "name",
    ["", " ", "/nowhere", "../secret", "a/../b", "org/name/more", "tts_models/x/y", "-x", "a" * 99]
    + ["a" * 300, "~nobody-of-this-name/model"],
)
def test_what_is_no_model_is_refused_before_anything_is_asked(
    name: str, make_settings: Make
) -> None:
    with pytest.raises(ProviderUnavailable, match="There is no model in|No model is named"):
        weights.folder(name, make_settings())


@pytest.mark.parametrize("name", ["org/name", "small", "tts_models/en/ljspeech/vits--neon"])
def test_offline_fetches_nothing_and_says_so(name: str, make_settings: Make) -> None:
    settings = make_settings(offline=True)
    with pytest.raises(ProviderUnavailable, match="OFFLINE forbids fetching"):
        weights.folder(name, settings)
    assert not weights.models_dir(settings).exists()


def test_what_was_broken_off_is_no_model(make_settings: Make) -> None:
    settings = make_settings()
    begun = weights.models_dir(settings) / ".pulling" / "org--name" / "files"
    begun.mkdir(parents=True)
    (begun / "model.safetensors.part").write_bytes(b"123")
    (weights.models_dir(settings) / "org--other").mkdir()
    found = weights.pulled(settings)
    assert [(x.name, x.bytes, x.whole) for x in found] == [
        ("org/name", 3, False),
        ("org/other", 0, True),
    ]


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (16_100_000_000, "16.1 GB"), (999_900, "1 MB")]
)
def test_sizes_are_told_as_disks_are_sold(count: int, said: str) -> None:
    assert weights.size(count) == said


# Choosing


def test_each_weight_is_fetched_in_one_format() -> None:
    chosen = wanted(
        [
            *("config.json", "tokenizer.json", "README.md", "chat_template.jinja"),
            *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            *("pytorch_model-00001-of-00002.bin", "consolidated.safetensors", "rust_model.ot"),
            *("tf_model.h5", "onnx/model.onnx", "original/consolidated.00.pth", "picture.png"),
            *("2_Dense/pytorch_model.bin", "2_Dense/config.json", ".gitattributes"),
        ]
    )
    assert chosen == {
        *("config.json", "tokenizer.json", "README.md", "chat_template.jinja"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        *("2_Dense/pytorch_model.bin", "2_Dense/config.json"),
    }


def test_a_converted_model_keeps_its_only_weights() -> None:
    names = {"model.bin", "config.json", "vocabulary.json"}
    assert wanted(names) == names


def test_only_weights_that_run_here_are_a_model() -> None:
    with pytest.raises(ProviderUnavailable, match="no weights in a format that runs here"):
        wanted(["config.json", "model-q4.gguf"])


@pytest.mark.parametrize("name", ["../../x.bin", "/etc/x.bin", "a/../../x.bin", "..\\x.bin"])
def test_a_file_that_leads_out_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ProviderUnavailable, match="unsafe name"):
        wanted([name])


# Fetching


def test_a_file_that_breaks_off_goes_on_where_it_was(files: FileServer, tmp_path: Path) -> None:
    wished = offer(files)
    files.break_off["/weights"] = 1 << 20
    seen: list[tuple[int, int]] = []
    fetch(wished, tmp_path, lambda *told: seen.append(told))
    assert (tmp_path / "deep/w.bin").read_bytes() == DATA
    assert [asked.range for asked in files.asked] == ["", f"bytes={1 << 20}-"]
    assert seen == sorted(seen)
    assert seen[-1] == (len(DATA), len(DATA))


def test_a_stopped_download_leaves_what_the_next_goes_on_from(
    files: FileServer, tmp_path: Path
) -> None:
    def stop(here: int, total: int) -> None:
        raise KeyboardInterrupt

    wished = offer(files)
    with pytest.raises(KeyboardInterrupt):
        fetch(wished, tmp_path, stop)
    kept = already(wished, tmp_path)
    assert 0 < kept < len(DATA)
    assert not (tmp_path / "deep/w.bin").exists()
    fetch(wished, tmp_path, unheard)
    assert (tmp_path / "deep/w.bin").read_bytes() == DATA
    assert files.asked[-1].range == f"bytes={kept}-"


def test_a_server_that_knows_no_ranges_is_asked_from_the_start(
    files: FileServer, tmp_path: Path
) -> None:
    wished = offer(files)
    files.ranges = False
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/w.bin.part").write_bytes(DATA[:1000])
    fetch(wished, tmp_path, unheard)
    assert (tmp_path / "deep/w.bin").read_bytes() == DATA


@pytest.mark.parametrize("sha256", ["0" * 64, None])
def test_what_is_not_what_was_promised_is_thrown_away(
    sha256: str | None, files: FileServer, tmp_path: Path
) -> None:
    wished = offer(files, sha256=sha256)
    if sha256 is None:
        files.files["/weights"] = DATA + b"more"
    with pytest.raises(ProviderUnavailable, match="not what the hub promised"):
        fetch(wished, tmp_path, unheard)
    assert not list((tmp_path / "deep").iterdir())


def test_a_link_that_leads_in_a_circle_is_one_sentence(files: FileServer, tmp_path: Path) -> None:
    wished = offer(files)
    files.moved_to["/weights"] = f"{files.url}/weights"
    with pytest.raises(ProviderUnavailable, match=r"could not be fetched \(TooManyRedirects\)"):
        fetch(wished, tmp_path, unheard)


def test_a_file_that_is_gone_is_one_sentence(files: FileServer, tmp_path: Path) -> None:
    wished = offer(files)
    files.status["/weights"] = 403
    with pytest.raises(ProviderUnavailable, match=r"deep/w.bin could not .* answers 403"):
        fetch(wished, tmp_path, unheard)


# Archives


def test_an_archive_is_unpacked_without_its_folders(tmp_path: Path) -> None:
    archive = tmp_path / "voice.zip"
    archive.write_bytes(zipped({"voice/config.json": b"{}", "../../escape.pth": b"w"}))
    into = weights._unpacked(archive, tmp_path / "voice")
    assert {path.name for path in into.iterdir()} == {"config.json", "escape.pth"}
    assert not (tmp_path.parent / "escape.pth").exists()


@pytest.mark.parametrize("damage", ["cut off", "compressed data", "encrypted"])
def test_a_damaged_archive_is_fetched_anew_next_time(damage: str, tmp_path: Path) -> None:
    data = bytearray(zipped({"config.json": b"{}" * 100}))
    if damage == "cut off":
        del data[-10:]
    elif damage == "encrypted":
        data[6] |= 1
        data[data.index(b"PK\1\2") + 8] |= 1
    else:
        data[41] = 0xFF  # the first byte behind the member's name
    archive = tmp_path / "voice.zip"
    archive.write_bytes(data)
    with pytest.raises(ProviderUnavailable, match="damaged"):
        weights._unpacked(archive, tmp_path / "voice")
    assert not archive.exists()


def zipped(members: dict[str, bytes]) -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return made.getvalue()
