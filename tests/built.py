"""What takes long to build and depends on its builders alone is kept in the user's cache."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Final

CACHE: Final = Path.home() / ".cache" / "gpuserver-tests"


def built_once(
    name: str, build: Callable[[Path], object], sources: Iterable[Path], libraries: Iterable[str]
) -> Path:
    """A folder that `build` fills, once for these source files and versions of the libraries."""
    digest = hashlib.sha256(" ".join(version(library) for library in libraries).encode())
    for source in sources:
        digest.update(source.read_bytes())
    folder = CACHE / f"{name}-{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=CACHE))
        build(new)
        try:
            new.rename(folder)
        except OSError:  # somebody else was quicker
            shutil.rmtree(new)
    return folder
