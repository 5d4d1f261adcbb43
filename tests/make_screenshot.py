"""Takes the pictures and the recording in docs/ from one spoken conversation with the real server.

Run it from the repository's root: `.venv/bin/python -m tests.make_screenshot`. It writes
`classroom.png` (an answer is spoken), `source.png` (its source is open), `live-voice.png` (the
student has interrupted it by voice and is answered) and `live-voice.md` (what went over the line
meanwhile).
"""

from __future__ import annotations

import json
import tempfile
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Page, sync_playwright

from tests.browser import SPEAKING, launch, until
from tests.conftest import running_server
from tests.live_tap import TAP, Frame, Tape, microphone

DOCS: Final = Path(__file__).parent.parent / "docs"
QUESTION: Final = "What is a list?"
INTERRUPTION: Final = "How do I repeat something in Python?"
RATE: Final = 22_050  # of the embedded voice
SCALE: Final = 1.6  # of the pictures
WIDTH: Final = 98
"""Columns of the recording."""
_STREAMS: Final = {"audio.delta", "visemes", "playback", "microphone"}
_LEFT_OUT: Final = {"type", "seq", "timestamp", "turn_id"}
_HEAD: Final = """# A live conversation, as it went over the line

A student asks by voice, listens for a few seconds and interrupts with the next question. These are
the messages of that conversation ([`tutor.v2`](protocol.md#tutorv2)) as a real Chromium saw them,
with the real server and its embedded engines on two CPU cores; the student's voice is synthetic.
The picture is from the same conversation.

![The second question is answered; the grey part of the first answer was not heard](live-voice.png)

Seconds count from the opening of the microphone; `→` is what the client sent, `←` what the server
sent, `#` its number. Streams are summed up, and long fields are cut (`…`). `.venv/bin/python -m
tests.make_screenshot` makes both again.

```text
"""


def take(url: str, folder: Path, docs: Path = DOCS) -> None:
    """Hold the conversation and write what is shown and sent."""
    said = microphone(folder, (1.0, QUESTION, 4.5, INTERRUPTION, 12.0))
    with sync_playwright() as playwright:
        browser = launch(playwright, said)
        page = browser.new_page(
            viewport={"width": 1200, "height": 800}, locale="en-GB", device_scale_factor=SCALE
        )
        page.add_init_script(TAP)
        page.goto(url)
        page.click(".card >> nth=0")
        page.wait_for_selector("html[data-activity=idle] #ask")
        page.click("#talk")
        page.wait_for_selector(SPEAKING)
        page.wait_for_selector(".answer:last-child .cite")
        picture(page, docs / "classroom.png")
        page.click(".cite >> nth=0")
        page.wait_for_selector("#passage .cited")
        page.screenshot(path=docs / "source.png")
        page.keyboard.press("Escape")
        page.wait_for_selector(".answer[data-status=interrupted]")
        page.set_viewport_size({"width": 1200, "height": 1000})
        page.wait_for_selector(".answer:last-child .cite", timeout=30_000)
        page.wait_for_selector(SPEAKING)
        # Back to where the first question stands, as a reader would scroll.
        page.evaluate(
            "document.querySelector('#log').scrollTop ="
            " document.querySelector('.question').offsetTop - 16"
        )
        picture(page, docs / "live-voice.png")
        until(page, "tap.frames.some(({ message: m }) => m.status === 'completed')", 40)
        tape = Tape(page)
        browser.close()
    (docs / "live-voice.md").write_text(recording(tape), encoding="utf-8")


def picture(page: Page, target: Path) -> None:
    """The page after more than a second of speech; an open mouth tells more than a closed one."""
    played = page.evaluate("classroom.playedSamples")
    until(page, f"classroom.playedSamples > {played + 1.2 * RATE}")
    until(page, "classroom.mouth.open > 0.5")
    page.screenshot(path=target)


# The recording


def recording(tape: Tape) -> str:
    """The conversation as a page of Markdown, from the opening of the microphone on."""
    opened = next(f.at for f in tape.of("session.update", way="client") if _detects(f))
    frames = [frame for frame in tape.frames if frame.way != "line" and frame.at >= opened]
    lines: list[str] = []
    for streams, group in groupby(frames, lambda frame: frame.type in _STREAMS):
        if streams:
            lines.extend(_streams(list(group), opened))
        else:
            lines.extend(_line(frame, opened) for frame in group)
    return _HEAD + "\n".join(lines) + "\n```\n"


def _detects(frame: Frame) -> bool:
    return "turn_detection" in frame.message


def _streams(frames: list[Frame], opened: float) -> Iterator[str]:
    """What goes on all the time, in one line for each kind and turn."""
    for (kind, turn), group in _by_kind(frames).items():
        first, last = group[0], group[-1]
        begin, end = (first.at - opened) / 1000, (last.at - opened) / 1000
        arrow = "→" if first.way == "client" else "←"
        many = f"{len(group)} times up to {end:.2f}" if len(group) > 1 else "once"
        yield _cut(f"{begin:6.2f}  {arrow} {'':4} {_name(kind, turn)} {many}: {_sum(kind, group)}")


def _by_kind(frames: list[Frame]) -> dict[tuple[str, str | None], list[Frame]]:
    kinds: dict[tuple[str, str | None], list[Frame]] = {}
    for frame in frames:
        kinds.setdefault((frame.type, frame.turn_id), []).append(frame)
    return kinds


def _sum(kind: str, group: list[Frame]) -> str:
    messages: list[dict[str, Any]] = [frame.message for frame in group]
    if kind == "microphone":
        return f"{sum(m['bytes'] for m in messages) / 32_000:.2f} s of sound, as binary frames"
    if kind == "audio.delta":
        seconds = sum(m["samples"] for m in messages) / RATE
        return f"{seconds:.2f} s of speech from offset {messages[0]['offset']}"
    if kind == "playback":
        return f"heard_ms {messages[0]['heard_ms']} to {messages[-1]['heard_ms']}"
    words = " ".join(word["text"] for m in messages for word in m["words"])
    return f"{sum(len(m['marks']) for m in messages)} mouth shapes; {words}"


def _line(frame: Frame, opened: float) -> str:
    arrow = "→" if frame.way == "client" else "←"
    number = f"#{frame.message['seq']}" if "seq" in frame.message else ""
    fields = {k: v for k, v in frame.message.items() if k not in _LEFT_OUT and v not in (None, "")}
    if "passages" in fields:
        fields["passages"] = [f"{p['n']} {p['heading']}" for p in fields["passages"]]
    if frame.type == "session.updated":
        kept = ("turn_detection", "input_audio_format", "audio_format")
        fields = {name: fields["audio"][name] for name in kept}
    said = json.dumps(fields, ensure_ascii=False) if fields else ""
    name = _name(frame.type, frame.turn_id)
    text = f"{(frame.at - opened) / 1000:6.2f}  {arrow} {number:4} {name} {said}"
    if frame.type != "turn.done":
        return _cut(text)
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * 15)


def _name(kind: str, turn: str | None) -> str:
    return f"{kind} {turn}" if turn else kind


def _cut(text: str) -> str:
    text = text.rstrip()
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, running_server(Path(name)) as server:
        take(server.url, Path(name))
