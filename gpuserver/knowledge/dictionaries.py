"""The recogniser's dictionaries on the disk: they hold words of the material, and go with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import orjson

from gpuserver.knowledge.disk import remove_all

_FOLDER: Final = "vocabulary"
_NOTE: Final = "bases.json"
_OF_NO_BASE: Final = "none"
"""The dictionary of the language itself."""
_HALF_MADE: Final = "."
"""Begins the name of a folder while a recogniser writes into it, which fails if that is gone."""


class Dictionaries:
    """What a recogniser keeps in a folder for each vocabulary, by its digest. Blocking.

    In each stands a note of the knowledge bases that its words are of. Whoever asks for one that is
    gone gives its vocabulary again, so that any may be removed at any time.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / _FOLDER

    def note(self, digest: str, kb_ids: Iterable[str]) -> None:
        """Note whose words a vocabulary holds; nothing for a recogniser that keeps no files."""
        with suppress(OSError):  # without a note it is removed the sooner
            (self._root / digest / _NOTE).write_bytes(orjson.dumps(sorted(kb_ids)))

    def forget(self, kb_id: str) -> None:
        """Remove all that may hold words of a knowledge base, but for what is being made."""
        remove_all(
            path
            for path, bases in self._each()
            if not path.name.startswith(_HALF_MADE) and (bases is None or kb_id in bases)
        )

    def stale(self, known: Callable[[str], bool]) -> list[Path]:
        """Those that hold words of a base which is no longer there, or nobody knows of which."""
        return [path for path, bases in self._each() if not bases or not all(map(known, bases))]

    def _each(self) -> Iterator[tuple[Path, list[str] | None]]:
        """The folders, also those half made, and their bases; None where there is no note."""
        try:
            folders = sorted(self._root.iterdir())
        except OSError:
            return
        for folder in folders:
            if folder.name == _OF_NO_BASE:
                continue
            try:
                bases = list(map(str, orjson.loads((folder / _NOTE).read_bytes())))
            except (OSError, ValueError, TypeError):
                yield folder, None
            else:
                yield folder, bases
