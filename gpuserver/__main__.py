"""Entry point. It imports nothing by itself: worker processes load this module again."""

import importlib
import sys


def main() -> int:
    """Run the command line; returns the exit status."""
    status: int = importlib.import_module("gpuserver.cli").run()
    return status


if __name__ == "__main__":
    sys.exit(main())
