"""The process that reads one document: limits itself, reads, cuts, writes the result, ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import orjson

from gpuserver.documents import ReadingLimits, confinement, messages
from gpuserver.documents.building import Source
from gpuserver.documents.kinds import extract
from gpuserver.errors import GpuServerError

_STEPS: Final = 200
"""Progress is told so many times at most."""


def main() -> None:
    """The request comes as JSON on standard input; see `messages` for what is written."""
    request = orjson.loads(sys.stdin.buffer.read())
    confinement.die_with_parent(request["parent"])
    limits = ReadingLimits(**request["limits"])
    confinement.confine(limits.memory_mb, limits.seconds)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints does not write into the result
    source = Source(Path(request["path"]), request["name"], limits, _teller(output))
    try:
        _read(source, output)
    except GpuServerError as error:
        _last(output, "refused", type(error).__name__, error.details)
    except (MemoryError, RecursionError):
        _last(output, "memory")
    except Exception as error:  # noqa: BLE001 - the top of this process
        # Its message may hold words of the document; the place says enough.
        place = traceback.extract_tb(error.__traceback__)[-1]
        _last(output, "failed", f"{type(error).__name__} at {place.filename}:{place.lineno}")


def _read(source: Source, output: BinaryIO) -> None:
    extracted = extract(source)
    # Loaded after the reader's libraries: what is refused early needs none of it.
    from gpuserver.documents.cutting import as_markdown, cut  # noqa: PLC0415

    for line in messages.encode_document(extracted, as_markdown(extracted), cut(extracted)):
        output.write(line)
    output.flush()


def _teller(output: BinaryIO) -> Callable[[int, int], None]:
    told = -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        step = done * _STEPS // max(1, total)
        if step != told:
            told = step
            output.write(messages.encode("progress", done, total))
            output.flush()

    return tell


def _last(output: BinaryIO, *message: object) -> None:
    output.write(messages.encode(*message))
    output.flush()


if __name__ == "__main__":
    main()
