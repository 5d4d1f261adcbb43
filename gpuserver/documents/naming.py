"""What the files of a folder or a zip are called as documents, and which of them are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

MAX_NAME: Final = 200
"""Characters of a document's name."""
_SYSTEMS_OWN: Final = ("__macosx", "thumbs.db", "desktop.ini")


class OneNameTwice(ValueError):
    """Two files would be the same document, and one of them would be lost."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def is_housekeeping(path: PurePath) -> bool:
    """What systems and programs leave beside documents: hidden files, Word's `~$` ones.

    `path` is relative to what was given: hidden folders above that do not count.
    """
    return any(part.startswith((".", "~$")) or part.lower() in _SYSTEMS_OWN for part in path.parts)


def document_names(paths: Sequence[PurePath]) -> list[str]:
    """A name for each file of a folder or a zip: its own, or, where another has that too, with the
    names of its folders before it: `week 1 - notes.md`.

    Raises OneNameTwice where that does not tell them apart.
    """
    own = Counter(path.name.strip() for path in paths)
    names = []
    for path in paths:
        name = path.name.strip()
        names.append(name if own[name] == 1 else " - ".join(path.parts).strip()[-MAX_NAME:].strip())
    for name, times in Counter(names).items():
        if times > 1:
            raise OneNameTwice(name)
    return names
