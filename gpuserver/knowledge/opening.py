"""Opening at the start what was uploaded, and later what another process held then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gpuserver.knowledge.base_folder import BaseFolder, is_deleted, left_of_deleted
from gpuserver.knowledge.disk import GOING, private_folder
from gpuserver.knowledge.info import DocumentInfo
from gpuserver.knowledge.uploaded_base import UploadedBase
from gpuserver.observability import get_logger
from gpuserver.threads import finish_in_thread

log = get_logger(__name__)

IMPORTS: Final = ".imports"
"""The folder for exported bases that come in or go out."""
RETRY_SECONDS: Final = 10.0
"""So often a base that another process holds is tried again."""


@dataclass(slots=True)
class Opened:
    """The bases of a data folder, and what servers before left behind in it."""

    bases: list[UploadedBase] = field(default_factory=list)
    left_over: list[Path] = field(default_factory=list)


def open_all(
    root: Path, courses: Collection[str], make: Callable[[BaseFolder], UploadedBase]
) -> Opened:
    """Open every base below `root`, but for those whose id a course has. Blocking.

    One that can't be read has a problem, and is among them.
    """
    opened = Opened()
    taken = {kb_id.lower() for kb_id in courses}
    private_folder(root)
    for path in sorted(root.iterdir()):
        folder = BaseFolder.at(path)
        if path.name == IMPORTS:
            opened.left_over.extend(path.iterdir())
        elif path.name.startswith(GOING):
            opened.left_over.append(path)
        elif is_deleted(path):
            opened.left_over.extend(left_of_deleted(path))
        elif folder is None or folder.kb_id.lower() in taken:
            log.warning("knowledge base left out", folder=path.name)
        else:
            base = make(folder)
            base.open()
            opened.bases.append(base)
            opened.left_over.extend(base.left_over)
    private_folder(root / IMPORTS)
    return opened


async def open_busy(
    bases: Iterable[UploadedBase], opened: Callable[[UploadedBase, list[DocumentInfo]], object]
) -> None:
    """Try those that another process held at the start until each is open, which `opened` hears
    with its documents."""
    busy = [base for base in bases if base.busy]
    while busy:
        await asyncio.sleep(RETRY_SECONDS)
        for base in busy:
            await finish_in_thread(base.open_again)
            if not base.busy:
                opened(base, base.documents())
        busy = [base for base in busy if base.busy]
