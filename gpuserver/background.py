"""The server as a background process: started, waited for, stopped, by a locked pid file."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import httpx2

from gpuserver.config import Settings
from gpuserver.errors import ConfigurationError, FolderNotWritable

_PID_FILE: Final = "gpuserver.pid"
_LOG_FILE: Final = "server.log"
_LOG_BYTES: Final = 10 << 20
_POLL_SECONDS: Final = 0.1
_LOOKS: Final = 5
_START_SECONDS: Final = 15 * 60.0
"""Loading a large model may take minutes; a server that dies is noticed at once."""


@contextmanager
def claimed(data_dir: Path, url: str) -> Iterator[None]:
    """Hold the pid file of a data folder, so that one server uses it and `stop` finds that one.

    The lock, not the file, says that a server runs: it goes with the process, however that ends.
    Raises ConfigurationError when another server holds it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / _PID_FILE
    with path.open("a+", encoding="utf-8") as file:
        if not _locked(file):
            file.seek(0)
            pid = (file.read().split() or ["?"])[0]
            raise ConfigurationError(
                problem=f"A server (process {pid}) already uses the folder {data_dir}.",
                fix="stop it with ./stop.sh, or set DATA_DIR to another folder.",
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n{url}\n")
        file.flush()
        # The file stays: removing it would leave two servers with two files of the same name.
        yield


def _locked(file: IO[str]) -> bool:
    """Whether the lock could be had; whoever only looks whether a server runs lets go at once."""
    for _ in range(_LOOKS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_SECONDS / _LOOKS)
        else:
            return True
    return False


def running(data_dir: Path) -> tuple[int, str] | None:
    """Process id and address of the server that uses a data folder, if one does."""
    try:
        with (data_dir / _PID_FILE).open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pid, _, url = file.read().strip().partition("\n")
                return (int(pid), url) if pid else None
    except (FileNotFoundError, ValueError):
        pass
    return None


def address(settings: Settings) -> str:
    """Where the server of these settings is, or would be, reached from this machine."""
    found = running(settings.data_dir)
    if found is not None:
        return found[1]
    return local_url(settings.management_api_host, settings.management_api_port)


def local_url(host: str, port: int) -> str:
    """Where this machine reaches a server that listens on an address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def start(settings: Settings, watch: Callable[[dict[str, Any]], None]) -> str:
    """Start a server, if none runs, and wait until students may come; returns its address.

    `watch` is called with what `/ready` answers meanwhile. Raises ConfigurationError, with the
    reason the server gave, when it does not get ready.
    """
    log = _log_file(settings.data_dir)
    began_at = log.stat().st_size
    server = None if running(settings.data_dir) else _spawn(log)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        found = running(settings.data_dir)
        if found is None and (server is None or server.poll() is not None):
            raise _died(log, began_at)
        if found is not None:
            progress = _ready(found[1])
            watch(progress)
            if progress.get("ready"):
                return found[1]
        time.sleep(_POLL_SECONDS)
    raise ConfigurationError(
        problem=f"The server is still not ready after {_START_SECONDS / 60:.0f} minutes.",
        fix=f"see {log}; ./stop.sh ends it.",
    )


def _spawn(log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "gpuserver", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # A session of its own: closing the terminal does not end it.
            start_new_session=True,
        )


def stop(settings: Settings) -> int | None:
    """End the server of this data folder and its workers; returns its process id, or None."""
    found = running(settings.data_dir)
    if found is None:
        return None
    pid = found[0]
    with suppress(ProcessLookupError):  # it ended by itself meanwhile
        os.kill(pid, signal.SIGTERM)
        # Its own grace, then a little for closing what the grace has cut off.
        deadline = time.monotonic() + settings.shutdown_grace_seconds + 5
        while running(settings.data_dir) is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(_POLL_SECONDS)
    return pid


def _ready(url: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = httpx2.get(f"{url}/ready", timeout=5, trust_env=False).json()
    except (httpx2.HTTPError, ValueError):
        return {}
    return answer


def _log_file(data_dir: Path) -> Path:
    folder = data_dir / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / _LOG_FILE
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        log.touch()
    except OSError as error:
        raise FolderNotWritable(folder=data_dir, reason=error.strerror) from error
    return log


def _died(log: Path, began_at: int) -> ConfigurationError:
    """The last thing the server said is the sentence that explains its end."""
    said = log.read_bytes()[began_at:].decode(errors="replace").strip().splitlines()
    last = next((x for x in reversed(said) if x.startswith("gpuserver: ")), "")
    if last:
        problem, _, fix = last.removeprefix("gpuserver: ").partition(" Fix: ")
        return ConfigurationError(problem=problem, fix=fix)
    return ConfigurationError(
        problem="The server ended while it was starting.", fix=f"see the end of {log}."
    )
