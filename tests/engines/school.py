"""A school's server as it is run, with tiny large models and tutors that can be told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from gpuserver.client import Management, Ticket
from gpuserver.tutor.tutors import SHIPPED
from tests.conftest import Running, running_server
from tests.engines.tiny_whisper import unpack

ADA: Final = 1
BO: Final = 2
LONG: Final = 3
"""Tutors: one says "Ada " only, one "Bo " only; the third says "Ada " and hardly ever ends."""
WORDS: Final = 8
"""Of an answer of the first two."""
_KEY: Final = "the-school's-own-key"
_SETTINGS: Final = {
    "PROFILE": "cpu",
    "OFFLINE": "true",
    "EMBEDDINGS_PROVIDER": "sentence-transformers",
    "LLM_CACHE_MB": "256",
    "MAX_SESSIONS": "100",
    "MANAGEMENT_API_KEY": _KEY,
    "LOG_LEVEL": "DEBUG",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class School:
    """A running server; `private` is what it has been told and no log may hold."""

    running: Running
    data_dir: Path
    private: list[str] = field(default_factory=lambda: [_KEY])

    def management(self) -> Management:
        return Management(self.running.url, _KEY)

    async def enrol(self, management: Management, tutor: int) -> Ticket:
        """A session for one more student of a tutor."""
        ticket = await management.create_session(tutor_id=tutor)
        self.private.append(ticket.engine_token)
        return ticket

    def question(self) -> str:
        """One that nobody has asked before."""
        word = f"marzipan{len(self.private)}"
        self.private.append(word)
        return f"What is a list, and does {word} go in one?"

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`gpuserver …` on the server's machine. Blocking."""
        return gpuserver(*words, DATA_DIR=str(self.data_dir), MANAGEMENT_API_KEY=_KEY)

    def logs(self) -> str:
        """What the server and its engines have written for people to read."""
        files = (self.running.log, *(self.data_dir / "logs").glob("*.log"))
        return "\n".join(file.read_text(encoding="utf-8") for file in files)

    def processes(self) -> list[psutil.Process]:
        """The server and all that it has started."""
        server = psutil.Process(self.running.pid)
        return [server, *server.children(recursive=True)]

    def engine(self) -> psutil.Process:
        """The process that the chat model computes in."""
        (found,) = (p for p in self.processes() if "EngineCore" in " ".join(p.cmdline()))
        return found


def gpuserver(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line with these settings, on a wide terminal. Blocking."""
    return subprocess.run(
        [sys.executable, "-m", "gpuserver", *words],
        env={**os.environ, "COLUMNS": "300", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def still_running(processes: Sequence[psutil.Process]) -> Sequence[psutil.Process]:
    """Those that have not ended in half a minute. Blocking."""
    for _ in range(300):
        processes = [process for process in processes if _runs(process)]
        if not processes:
            break
        time.sleep(0.1)
    return processes


def _runs(process: psutil.Process) -> bool:
    """One that has ended, and nobody has asked about, does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def exit_status(pid: int) -> int | None:
    """Of a child that has ended, or the signal that ended it."""
    end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return end.si_status if end is not None else None


@contextmanager
def school(
    folder: Path, chat_model: Path, adapters: Mapping[str, Path], voice: Path
) -> Iterator[School]:
    """The server, when it is ready; `folder` is its own."""
    tutors = folder / "tutors.yaml"
    # JSON is YAML.
    tutors.write_text(json.dumps(_tutors(adapters)), encoding="utf-8")
    settings = {
        **_SETTINGS,
        "TUTORS_FILE": str(tutors),
        "LLM_MODEL": str(chat_model),
        "ASR_MODEL": str(unpack(folder / "whisper")),
        "TTS_MODEL": str(voice),
    }
    with running_server(folder, **settings) as running:
        yield School(running, folder / "data")


def _tutors(adapters: Mapping[str, Path]) -> dict[str, Any]:
    def tutor(number: int, name: str, persona: str, speaker: str, words: int) -> dict[str, Any]:
        return {
            "id": number,
            "name": name,
            "persona": persona,
            "knowledge": ["python"],
            # Some of what students say is about no course: "Show me an example, please."
            "outside": "general",
            "voices": {"en": speaker},
            "models": {"llm": {"adapter": str(adapters[speaker])}},
            "sampling": {"temperature": 0, "max_tokens": words},
        }

    return {
        "courses": {"python": str(SHIPPED.parent / "courses" / "python")},
        "tutors": [
            tutor(ADA, "Curie", "You are strict, and you explain with examples.", "ada", WORDS),
            tutor(BO, "Darwin", "You are patient and ask questions back.", "bo", WORDS),
            tutor(LONG, "Gauss", "You leave nothing out.", "ada", 3000),
        ],
    }
