"""What the command line shows: answers as they are written, words as they are heard, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from gpuserver.errors import GpuServerError
from gpuserver.tutor import events

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

_FORGOTTEN: Final = " The server has forgotten what was running: please ask again."
_STAGES: Final = {
    "commit": "end of turn",
    "transcript": "words",
    "passages": "passages",
    "first_token": "first word",
    "first_clause": "first clause",
    "first_audio": "first sound",
    "first_playback": "heard",
    "done": "done",
}


@contextmanager
def loading() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on the terminal, or one line a stage where there is none."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=notes, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        said = ""

        def show(stage: str, done: int, total: int) -> None:
            nonlocal said
            bar.update(task, description=stage, completed=done, total=total or None)
            if stage != said and not notes.is_terminal:
                notes.print(f"… {stage}", markup=False)
            said = stage

        yield show


def _source_lines(cited: Sequence[tuple[str, str]], near: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each source, of its document and heading: those the answer cites, in the order of
    their numbers, or those that are near."""
    numbered = [f"[{n}] {name}: {heading}" for n, (name, heading) in enumerate(cited, 1)]
    return numbered + [f"near: {name}: {heading}" for name, heading in near]


class Printer:
    """A sink that shows a turn on the terminal and keeps its speech."""

    def __init__(self) -> None:
        self.pcm: list[bytes] = []
        self.sample_rate = 0
        self.error: GpuServerError | None = None
        self._sources: list[str] = []
        self._thinking = False

    async def write(self, event: events.Event) -> None:
        if self._thinking and not isinstance(event, events.Thought):
            notes.print()
        self._thinking = isinstance(event, events.Thought)
        match event:
            case events.Recognised(transcript):
                out.print(f"(heard: {transcript.text})", style="dim", markup=False)
            case events.TextDelta(text):
                out.print(text, end="", markup=False, soft_wrap=True)
            case events.SpeechChunk(speech, _):
                self.pcm.append(speech.pcm)
                self.sample_rate = speech.sample_rate
            case events.Sources(passages, near):
                self._sources = _source_lines(
                    *([(p.document, p.heading) for p in some] for some in (passages, near))
                )
            case events.TextDone():
                out.print()
                for line in self._sources:
                    out.print(line, style="dim", markup=False)
            case events.Ended(error=GpuServerError() as error):
                self.error = error
            case _:
                self._note(event)

    def _note(self, event: events.Event) -> None:
        """What is no part of the answer, and stays out of a file that the answer goes to."""
        match event:
            case events.InLine(position, eta_s):
                notes.print(in_line(position, eta_s), style="dim", markup=False)
            case events.AnsweredBy(provider):
                line = f"(answered by {provider}: the tutor's own model isn't available)"
                notes.print(line, style="yellow", markup=False)
            case events.BeyondCourse():
                line = "(general knowledge: the course material does not cover the question)"
                notes.print(line, style="yellow", markup=False)
            case events.Thought(text):
                notes.print(text, end="", style="dim italic", markup=False, soft_wrap=True)


class Screen:
    """Shows a conversation from its `tutor.v2` messages, as they come."""

    def __init__(self, console: Console, errors: Console, *, latency: bool = False) -> None:
        """`latency`: show each turn's timeline."""
        self._met = False
        self._console, self._errors, self._latency = console, errors, latency
        self._partial: Live | None = None
        self._within_line = self._thinking = False
        self._written: set[str] = set()
        self._sources: dict[str, list[str]] = {}

    def show(self, message: dict[str, Any]) -> None:
        """Show one message; those that say nothing to a reader show nothing."""
        match message:
            case {"type": "transcription.delta", "stable": stable, "tentative": tentative}:
                self._show_partial(stable, tentative)
            case {"type": "transcription", "content": content}:
                self._line(f"(heard: {content})", "dim")
            case {"type": "sources", "turn_id": turn, "passages": passages}:
                near = message.get("near", ())
                self._sources[turn] = _source_lines(
                    *([(p["document"], p["heading"]) for p in some] for some in (passages, near))
                )
            case {"type": "thought.delta", "content": content}:
                self._think(content)
            case {"type": "text.delta", "content": content, "turn_id": turn}:
                self._written.add(turn)
                self._write(content)
            case {"type": "text", "content": content, "turn_id": turn}:
                self._complete(turn, content)
            case {"type": "turn.done"}:
                self._done(message)
            case _:
                self._show_state(message)

    def _show_state(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "error", "content": content}:
                self.tell(content, "red")
            case {"type": "queue", "position": position, "eta_s": eta}:
                self._line(in_line(position, eta), "dim")
            case {"type": "notice", "content": content}:
                self.tell(content, "yellow")
            case {"type": "connection.lost"}:
                self.tell("The connection was lost; trying again …", "yellow")
            case {"type": "session.ready"}:
                self._welcome(message)

    def close(self) -> None:
        """Take away what was shown for the moment only."""
        if self._partial is not None:
            self._partial.stop()
            self._partial = None

    def _show_partial(self, stable: str, tentative: str) -> None:
        """Words as they are heard, in place; only a terminal can take them back."""
        if not self._console.is_terminal:
            return
        between = " " if stable and tentative else ""
        words = Text.assemble("… ", stable, between, (tentative, "dim"))
        if self._partial is None:
            self._end_line()
            self._partial = Live(console=self._console, transient=True, auto_refresh=False)
            self._partial.start()
        self._partial.update(words, refresh=True)

    def _complete(self, turn: str, content: str) -> None:
        if turn not in self._written:
            self._write(content)
        self._end_line()
        for line in self._sources.pop(turn, []):
            self._line(line, "dim")

    def _done(self, message: dict[str, Any]) -> None:
        self._written.discard(message["turn_id"])
        self._sources.pop(message["turn_id"], None)
        if message["status"] == "interrupted":
            heard = message.get("heard")
            self._line(f"(interrupted; heard: {heard})" if heard else "(interrupted)", "dim")
        if self._latency and message["timeline"]:
            self._line(latency_strip(message["timeline"]), "dim cyan")

    def _welcome(self, ready: dict[str, Any]) -> None:
        if self._met:
            rest = "" if ready.get("resumed") else _FORGOTTEN
            self.tell(f"The connection is back.{rest}", "yellow")
            return
        self._met = True
        self._line(ready["tutor"]["greeting"], "bold")
        if ready.get("notice"):
            self.tell(ready["notice"], "yellow")

    def _think(self, content: str) -> None:
        if not self._thinking:
            self._end_line()
        self.close()
        self._console.print(content, end="", style="dim italic", markup=False, soft_wrap=True)
        self._within_line = self._thinking = True

    def _write(self, content: str) -> None:
        if self._thinking:
            self._end_line()
        self.close()
        self._console.print(content, end="", markup=False, soft_wrap=True)
        self._within_line = True

    def _line(self, line: str, style: str) -> None:
        self._end_line()
        self._console.print(line, style=style, markup=False, soft_wrap=True)

    def tell(self, line: str, style: str) -> None:
        """A sentence that is no part of the conversation."""
        self._end_line()
        self._errors.print(line, style=style, markup=False, soft_wrap=True)

    def _end_line(self) -> None:
        self.close()
        if self._within_line:
            self._console.print()
        self._within_line = self._thinking = False


def in_line(position: int, eta_s: int) -> str:
    """A question's place in line, for people to read."""
    return f"(number {position} in line, about {eta_s} s)"


def latency_strip(timeline: Mapping[str, int]) -> str:
    """A turn's stages on one line, in milliseconds from the end of the student's speech."""
    stages = [f"{_STAGES.get(stage, stage)} {ms}" for stage, ms in timeline.items()]
    return " · ".join(stages) + " ms" if stages else ""
