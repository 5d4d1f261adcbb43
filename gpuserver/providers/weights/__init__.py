"""Where a model's files are: a folder of the operator's, or one pulled from a hub."""

from __future__ import annotations

import fcntl
import importlib
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from gpuserver.config import Settings
from gpuserver.errors import ProviderUnavailable
from gpuserver.machine import bytes_in
from gpuserver.providers import OnProgress
from gpuserver.providers.weights import download
from gpuserver.providers.weights.download import OnBytes
from gpuserver.providers.weights.offers import Offer

_SCRATCH: Final = ".pulling"
_FILES: Final = "files"
_PART: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_NAME: Final = re.compile(rf"{_PART}(/{_PART})?|tts_models(/{_PART}){{3}}")
_SPARE_BYTES: Final = 256 << 20
"""Left free on the disk for all else."""
_MOST_UNPACKED: Final = 20_000_000_000
_MOST_MEMBERS: Final = 1000
_BAD_ZIP: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
"""What a damaged or an encrypted ZIP ends in, and one packed in an unknown way."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model in the folder of models; `whole` is false for one that is still to be finished."""

    name: str
    bytes: int
    whole: bool


def models_dir(settings: Settings) -> Path:
    """The folder that pulled models lie in."""
    return settings.models_dir or settings.data_dir / "models"


def folder(model: str, settings: Settings, on_progress: OnProgress | None = None) -> Path:
    """The folder of a model named by a path or a hub name; pulled now if it isn't here.

    Blocking. An exception of `on_progress` stops a pull, which can go on later. Raises
    ProviderUnavailable, with the fix.
    """

    def told(here: int, total: int) -> None:
        if on_progress is not None:
            on_progress("fetching", here / total if total else None)

    return _here(model, settings) or pull(model, settings, told)


def pull(name: str, settings: Settings, on_bytes: OnBytes, *, accept_licence: bool = False) -> Path:
    """Fetch a model from its hub into the folder of models, whole or not at all.

    A pull that was broken off goes on where it was. Blocking. Raises ProviderUnavailable.
    """
    _check_name(name)
    target = _target(name, settings)
    if os.path.isdir(target):
        return target.resolve()
    if settings.offline:
        raise ProviderUnavailable(
            problem=f"The model {name!r} is not here, and OFFLINE forbids fetching it.",
            fix="name a folder that holds it, or set OFFLINE=false.",
        )
    offer = _look_up(name, accept_licence)
    scratch = models_dir(settings) / _SCRATCH / target.name
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with _alone(scratch / "lock", name):
            if not target.is_dir():  # another process may just have finished it
                _bring(offer, scratch, target, on_bytes)
        # The model is there; another process that asked for it may be clearing up, too.
        shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ProviderUnavailable(
            problem=f"The model {name!r} can't be kept in {scratch} ({error.strerror}).",
            fix="free space, make the folder writable, or set MODELS_DIR to another.",
        ) from error
    return target.resolve()


def pulled(settings: Settings) -> list[Pulled]:
    """The models in the folder of models, and those whose pull was broken off. Blocking."""
    root = models_dir(settings)
    whole = [Pulled(_name(path), bytes_in(path), True) for path in _folders(root)]
    parts = [
        Pulled(_name(path), bytes_in(path / _FILES), False) for path in _folders(root / _SCRATCH)
    ]
    return sorted(whole + [x for x in parts if x.bytes], key=lambda model: model.name)


def size(count: float) -> str:
    """Bytes for people, in the units that disks are sold by."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _here(model: str, settings: Settings) -> Path | None:
    if not model.strip():
        raise ProviderUnavailable(
            problem="No model is named.", fix="name a folder or a hub name, as in LLM_MODEL."
        )
    # Unlike Path's methods these take any name: one that is too long, or of no user, is no folder.
    for candidate in (os.path.expanduser(model), _target(model, settings)):
        if os.path.isdir(candidate):
            return Path(candidate).resolve()
    return None


def _target(name: str, settings: Settings) -> Path:
    return models_dir(settings) / name.replace("/", "--")


def _name(path: Path) -> str:
    """The name that a folder was pulled by; a voice's own name may hold the two hyphens, too."""
    splits = 3 if path.name.startswith("tts_models--") else 1
    return path.name.replace("--", "/", splits)


def _folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or ".." in name:
        shown = name if len(name) <= 100 else f"{name[:100]}…"
        raise ProviderUnavailable(
            problem=f"There is no model in {shown!r}, and this is no hub name.",
            fix="give a folder that is there, or a name such as Qwen/Qwen3-8B, small or "
            "tts_models/en/ljspeech/vits.",
        )


@contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    """Hold a lock file, which goes with the process. Raises ProviderUnavailable when it is held."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ProviderUnavailable(
                problem=f"The model {name!r} is being fetched right now.", fix="wait for it."
            ) from error
        yield


def _look_up(name: str, accept_licence: bool) -> Offer:
    hub = "voice_hub" if name.startswith("tts_models/") else "hub"
    try:
        offer: Offer = importlib.import_module(f"gpuserver.providers.weights.{hub}").look_up(name)
    except ImportError as error:
        raise ProviderUnavailable(
            problem=f"Fetching {name!r} needs a library that is not installed here: {error}.",
            fix="run ./start.sh with PROFILE=cpu or PROFILE=gpu, which installs it, then "
            f".venv-engines/bin/gpuserver models pull {name}",
        ) from error
    if offer.must_agree and not accept_licence:
        raise ProviderUnavailable(
            problem=f"The model {name!r} asks you to agree to its licence ({offer.licence}).",
            fix=f"read it, then run gpuserver models pull {name} --accept-licence",
        )
    return offer


def _bring(offer: Offer, scratch: Path, target: Path, on_bytes: OnBytes) -> None:
    """All that is kept of an earlier try is of the same revision; the last step is a rename."""
    files, note = scratch / _FILES, scratch / "revision"
    if not note.is_file() or note.read_text(encoding="utf-8") != offer.revision:
        shutil.rmtree(files, ignore_errors=True)
        note.write_text(offer.revision, encoding="utf-8")
    files.mkdir(exist_ok=True)
    # A ZIP lies beside what is unpacked from it; weights hardly shrink in one.
    needs = offer.size * (2 if offer.archive else 1) - download.already(offer, files)
    free = shutil.disk_usage(scratch).free
    if needs + _SPARE_BYTES > free:
        raise ProviderUnavailable(
            problem=f"The model needs {size(needs)}, and {size(free)} are free in {target.parent}.",
            fix="free some space, or set MODELS_DIR to a folder on a larger disk.",
        )
    download.fetch(offer, files, on_bytes)
    if offer.archive:
        files = _unpacked(files / offer.files[0].path, scratch / "unpacked")
    files.replace(target)


def _unpacked(archive: Path, into: Path) -> Path:
    """The files of a ZIP, without its folders. Raises ProviderUnavailable for one that is bad."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [x for x in zipped.infolist() if not x.is_dir()]
            if len(members) > _MOST_MEMBERS or sum(x.file_size for x in members) > _MOST_UNPACKED:
                raise zipfile.BadZipFile("too large")
            for member in members:
                path = into / PurePosixPath(member.filename).name
                with zipped.open(member) as source, path.open("wb") as kept:
                    shutil.copyfileobj(source, kept, 1 << 20)
    except _BAD_ZIP as error:
        archive.unlink()
        raise ProviderUnavailable(
            problem=f"The archive of this model is damaged ({error}).", fix="try again."
        ) from error
    return into
