"""Where the CPU time of a streamed frame goes: `python -m bench.where [--speech]`."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Final

from bench.clients import SPEECH_ONLY, Client, clients
from bench.common import server
from bench.overhead import RATE, SESSIONS, ask_all
from bench.servers import PRODUCT

_SECONDS: Final = 6


async def _cost(report: Path, *, speech: bool) -> float:
    """CPU microseconds a frame; what the samples say is in the report once the server has ended."""
    answer = ["--tokens", str(RATE * _SECONDS), "--rate", str(RATE), "--sample", str(report)]
    answer += ["--speech", "--voice", "auto"] if speech else []
    with server("bench.servers", PRODUCT, *answer, max_sessions=SESSIONS) as target:
        async with clients(target, SESSIONS, Client, ours=True) as connected:
            if speech:
                for client in connected:
                    client.tell(SPEECH_ONLY)
            before = target.process.cpu_seconds()
            await ask_all(connected)
            for client in connected:
                await client.done.wait()
            used = target.process.cpu_seconds() - before
            frames = sum(client.frames for client in connected)
    return used / frames * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.where", description=__doc__)
    parser.add_argument("--speech", action="store_true", help="frames of speech, not of text")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        cost = asyncio.run(_cost(report, speech=given.speech))
        print(f"{cost:.1f} µs a frame, with sampling\n\n{report.read_text()}")


if __name__ == "__main__":
    main()
