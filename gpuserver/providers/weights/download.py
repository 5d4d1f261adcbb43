"""Files over HTTP into a folder: begun where the last try broke off, and whole or not at all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx2

from gpuserver.errors import ProviderUnavailable
from gpuserver.providers.weights.offers import Offer, RemoteFile

OnBytes = Callable[[int, int], None]
"""Told bytes here and bytes in all; what it raises stops the download, which can go on later."""

_CHUNK: Final = 1 << 20
_SECONDS: Final = 30.0
"""Without a byte for this long, a connection is taken for broken."""
_PAUSES: Final = (0.5, 2.0, 4.0, 8.0)
"""Seconds before each new try while nothing comes; a byte that comes begins the row anew."""
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


def fetch(offer: Offer, into: Path, on_bytes: OnBytes) -> None:
    """Bring the files of an offer into a folder, which may hold parts of them already.

    Blocking. Raises ProviderUnavailable, OSError.
    """
    total, before = offer.size, 0
    with httpx2.Client(follow_redirects=True, timeout=_SECONDS, headers=offer.headers) as http:
        for file in offer.files:
            begun_at = before

            def told(here: int, begun_at: int = begun_at) -> None:
                on_bytes(begun_at + here, total)

            _Download(http, file, into / file.path, told).run()
            before += file.size


def already(offer: Offer, folder: Path) -> int:
    """Bytes of an offer that a folder holds from an earlier try."""
    here = (folder / file.path for file in offer.files)
    found = (target if target.exists() else _part(target) for target in here)
    return sum(path.stat().st_size for path in found if path.exists())


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


class _Download:
    """One file on its way."""

    def __init__(
        self, http: httpx2.Client, file: RemoteFile, target: Path, told: Callable[[int], None]
    ) -> None:
        self._http, self._file, self._target, self._told = http, file, target, told
        self._here = 0
        self._digest = hashlib.sha256()

    def run(self) -> None:
        if self._target.is_file():
            self._told(self._file.size)
            return
        part = _part(self._target)
        part.parent.mkdir(parents=True, exist_ok=True)
        self._take_up(part)
        failures = 0
        while self._here < self._file.size or not part.exists():
            here = self._here
            try:
                self._go_on(part)
            except httpx2.TransportError as error:
                failures = failures + 1 if self._here == here else 1
                if failures > len(_PAUSES):
                    raise self._broken(f"the connection broke: {type(error).__name__}") from error
                time.sleep(_PAUSES[failures - 1])
            except httpx2.RequestError as error:  # led in a circle
                raise self._broken(type(error).__name__) from error
        self._check(part)
        part.replace(self._target)

    def _take_up(self, part: Path) -> None:
        """What an earlier try has left counts, in bytes and in the checksum.

        Where the hub tells no checksum it does not: nobody could tell what it is.
        """
        if not part.exists() or not self._file.sha256:
            return
        with part.open("rb") as file:
            while chunk := file.read(_CHUNK):
                self._digest.update(chunk)
                self._here += len(chunk)
        self._told(self._here)

    def _go_on(self, part: Path) -> None:
        # Unpacked on the way, a file would have another length than the one that is promised.
        headers = {"Accept-Encoding": "identity"}
        if self._here:
            headers["Range"] = f"bytes={self._here}-"
        with self._http.stream("GET", self._file.url, headers=headers) as answer:
            if answer.status_code in _PASSING:
                raise httpx2.RemoteProtocolError(f"status {answer.status_code}")
            if not answer.is_success:
                raise self._broken(f"the hub answers {answer.status_code}")
            if answer.status_code != 206:  # a server that can't begin in the middle
                self._here, self._digest = 0, hashlib.sha256()
            with part.open("ab" if self._here else "wb") as file:
                for chunk in answer.iter_bytes(_CHUNK):
                    file.write(chunk)
                    self._digest.update(chunk)
                    self._here += len(chunk)
                    self._told(min(self._here, self._file.size))
                    if self._here > self._file.size:
                        return  # no more of what was not promised
        if self._here < self._file.size:
            raise httpx2.RemoteProtocolError("ended early")

    def _check(self, part: Path) -> None:
        right = self._here == self._file.size
        if right and self._file.sha256:
            right = self._digest.hexdigest() == self._file.sha256
        if not right:
            part.unlink()
            raise self._broken("what came is not what the hub promised")

    def _broken(self, reason: str) -> ProviderUnavailable:
        return ProviderUnavailable(
            problem=f"The file {self._file.path} could not be fetched ({reason}).",
            fix="check the network and try again; what is here already is kept.",
        )
