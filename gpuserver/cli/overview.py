"""How the command line shows a server: its state, GPUs, memory and loaded models, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from gpuserver.providers.weights import Pulled, size

_COLOURS: Final = {"ready": "green", "asleep": "blue", "failed": "red"}
_BAR_WIDTH: Final = 24
Row = Mapping[str, Any]


def page(status: Row, loaded: Row) -> RenderableType:
    """All of it, from what `/status` and `/mgmt/v1/models` answer."""
    return Group(_head(status), _machine(loaded), models(loaded["models"]))


def problem(sentence: str) -> RenderableType:
    """In place of the page while the server does not answer."""
    return Text(sentence, style="red")


def models(rows: Sequence[Row]) -> RenderableType:
    """The loaded models, one a line."""
    if not rows:
        return Text("No model is loaded.", style="dim")
    # An id is typed again, to unload its model: it is shown whole.
    name = Column("model", overflow="fold")
    table = Table(name, "state", "for", "busy", "memory", "idle", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(_model(row), _state(row), _users(row), _busy(row), _memory(row), _idle(row))
    return table


def on_disk(found: Sequence[Pulled], folder: Path) -> RenderableType:
    """The models that were pulled."""
    if not found:
        return Text(f"No model has been pulled into {folder}.", style="dim")
    table = Table(f"in {escape(str(folder))}", "size", "", box=box.SIMPLE_HEAD)
    for model in found:
        note = "" if model.whole else "[yellow]not whole: pull it again to go on[/]"
        table.add_row(escape(model.name), size(model.bytes), note)
    return table


def _head(status: Row) -> RenderableType:
    state = "[green]ready[/]" if status["ready"] else "[yellow]not ready[/]"
    if status["degraded"]:
        state += f", [yellow]degraded: {escape(', '.join(status['degraded']))}[/]"
    return Text.from_markup(
        f"gpuserver {escape(str(status['version']))} · {state}"
        f" · up {_span(status['uptime_seconds'])}"
        f" · sessions {status['active_sessions']}/{status['max_sessions']}"
        f" · connections {status['active_connections']}"
    )


def _machine(loaded: Row) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for gpu in loaded["gpus"]:
        grid.add_row(
            f"GPU {gpu['index']}", *_bar(gpu["free_mb"], gpu["total_mb"]), escape(gpu["name"])
        )
    if not loaded["gpus"]:
        grid.add_row("GPU", "[dim]none here[/]")
    host, disk = loaded["host"], loaded["disk"]
    grid.add_row(
        "memory",
        *_bar(host["free_mb"], host["total_mb"]),
        "",
    )
    grid.add_row(
        "disk",
        f"{_megabytes(disk['free_mb'])} free",
        "",
        f"models take {_megabytes(disk['models_mb'])} in {escape(str(disk['folder']))}",
    )
    return grid


def _bar(free: float, total: float) -> tuple[RenderableType, str]:
    used = max(0, total - free)
    bar = ProgressBar(total=total or 1, completed=used, width=_BAR_WIDTH)
    return bar, f"{_megabytes(used)} of {_megabytes(total)}"


def _model(row: Row) -> str:
    pinned = "\n[cyan]pinned[/]" if row["pinned"] else ""
    return f"{escape(str(row['id']))}{pinned}"


def _state(row: Row) -> str:
    state = str(row["state"])
    words = f"[{_COLOURS.get(state, 'yellow')}]{escape(state)}[/]"
    if state == "loading":
        share = "" if row.get("share") is None else f" {row['share']:.0%}"
        words += escape(f" {row.get('stage') or ''}{share}")
    return f"{words}\n{escape(row['problem'])}" if row.get("problem") else words


def _users(row: Row) -> str:
    return escape("\n".join(f"{tutor['id']} {tutor['name']}" for tutor in row["tutors"])) or "–"


def _busy(row: Row) -> str:
    waiting = f", {row['waiting']} waiting" if row["waiting"] else ""
    return f"{row['running']} running{waiting}" if row["running"] or waiting else "–"


def _memory(row: Row) -> str:
    parts = [_megabytes(row["memory_mb"])] if row.get("memory_mb") else []
    on_gpus = (row.get("gpu_memory_mb") or {}).items()
    parts += [f"GPU {index}: {_megabytes(used)}" for index, used in on_gpus]
    return "\n".join(parts) or "–"


def _idle(row: Row) -> str:
    return "–" if row.get("idle_seconds") is None else _span(row["idle_seconds"])


def _megabytes(count: float) -> str:
    """As the API counts them, in units of 1024."""
    return f"{count:.0f} MB" if count < 1000 else f"{count / 1024:.1f} GB"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
