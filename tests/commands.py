"""Commands of the program, run beside the server that they ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import click
import typer

NOBODY: Final = "http://127.0.0.1:1"
"""Where no server answers."""


async def run(command: Callable[[], None]) -> int:
    """The exit status of a command."""
    try:
        await asyncio.to_thread(command)
    except typer.Exit as ended:
        return ended.exit_code
    except click.exceptions.Abort:
        return 1
    return 0
