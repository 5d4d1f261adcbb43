"""All benchmarks, one after another: `python -m bench [--quick] [name …]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Final

from bench import (
    common,
    first_audio,
    growth,
    indexing,
    interrupt,
    latency,
    leases,
    memory,
    microphones,
    overhead,
    readmission,
    retrieval,
    spoken_turn,
    start_up,
)

BENCHMARKS: Final[Mapping[str, common.Measure]] = {
    "overhead": overhead.measure,
    "microphones": microphones.measure,
    "latency": latency.measure,
    "first_audio": first_audio.measure,
    "interrupt": interrupt.measure,
    "growth": growth.measure,
    "memory": memory.measure,
    "readmission": readmission.measure,
    "retrieval": retrieval.measure,
    "indexing": indexing.measure,
    "spoken_turn": spoken_turn.measure,
    "start_up": start_up.measure,
    "leases": leases.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], metavar="name")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, rougher figures")
    given = parser.parse_args()
    passed = [
        common.run(name, BENCHMARKS[name], quick=given.quick) for name in given.names or BENCHMARKS
    ]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
