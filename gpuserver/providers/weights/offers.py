"""What a hub offers of a model: its files and their sizes, and which of them are worth fetching."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Final

from gpuserver.errors import ProviderUnavailable

_MOST_FILES: Final = 2000
_WEIGHTS: Final = (".safetensors", ".bin", ".pth", ".pt")
# Weights for other programs, pictures for the model's page, and what a repository keeps for itself.
_LEFT_OUT: Final = (
    *("*.h5", "*.msgpack", "*.ot", "*.tflite", "*.gguf", "*.ggml", "*.onnx", "*.onnx_data"),
    *("*.mlmodel", "*.mlpackage/*", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.mp4"),
    *("onnx/*", "openvino/*", "coreml/*", "original/*", "runs/*", ".git*", ".eval_results/*"),
)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as a hub has it: `path` in the model's folder, `size` in bytes, `sha256` if known."""

    path: str
    url: str
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as a hub has it; `revision` changes whenever one of its files does.

    `headers` may hold a token. The one file of an `archive` is a ZIP of the model's files.
    """

    revision: str
    files: tuple[RemoteFile, ...]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    archive: bool = False
    licence: str = ""
    must_agree: bool = False
    """Whether its licence asks for the operator's agreement."""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def wanted(paths: Collection[str]) -> frozenset[str]:
    """The files of a repository that a model needs here, each weight in one format only.

    Raises ProviderUnavailable when there are none, or one leads out of the folder.
    """
    if len(paths) > _MOST_FILES:
        raise ProviderUnavailable(
            problem=f"This is no model: it has {len(paths)} files.", fix="check its name."
        )
    kept = [path for path in paths if not _any_of(path, _LEFT_OUT)]
    safe = {PurePosixPath(path).parent for path in kept if _is_safetensors(path)}
    chosen = frozenset(path for path in kept if not _is_double(path, safe))
    if not any(path.endswith(_WEIGHTS) for path in chosen):
        raise ProviderUnavailable(
            problem="This model has no weights in a format that runs here.",
            fix="choose a variant with .safetensors files (or CTranslate2's model.bin).",
        )
    check_paths(chosen)
    return chosen


def check_paths(paths: Iterable[str]) -> None:
    """Raises ProviderUnavailable for a path that leads out of the model's folder."""
    for path in paths:
        if path.startswith("/") or "\\" in path or ".." in PurePosixPath(path).parts:
            raise ProviderUnavailable(
                problem=f"A file of this model has an unsafe name: {path!r}.",
                fix="tell its author; don't use it.",
            )


def filtered(
    paths: Iterable[str], allow: Collection[str] | None, ignore: Collection[str]
) -> frozenset[str]:
    """The paths that match one of `allow` (None: all) and none of `ignore`."""
    return frozenset(
        path
        for path in paths
        if (allow is None or _any_of(path, allow)) and not _any_of(path, ignore)
    )


def _any_of(path: str, patterns: Collection[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def _is_safetensors(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.endswith(".safetensors") and not name.startswith("consolidated")


def _is_double(path: str, safe: Collection[PurePosixPath]) -> bool:
    """Whether safetensors in the same folder hold the same weights."""
    file = PurePosixPath(path)
    if file.parent not in safe:
        return False
    # `model.bin` is CTranslate2's format, which has no other.
    pickled = file.suffix in {".bin", ".pth", ".pt"} and file.name != "model.bin"
    return pickled or file.name.startswith("consolidated")
