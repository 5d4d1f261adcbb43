"""Records what goes over a page's line and out of its player, and speaks into its microphone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Page

from tests.speech import encode, flite, joined, silence

ONCE: Final = "%noloop"
"""Chromium plays a microphone's file with this behind its name to the end, then silence."""

# Frames are noted before the page sees them, so what it does about one comes later in the record.
TAP: Final = """
window.tap = { frames: [], samples: [] };
{
  const said = (frame) => {
    if (typeof frame === 'string') return JSON.parse(frame);
    if (!(frame instanceof ArrayBuffer)) return { type: 'microphone', bytes: frame.byteLength };
    const header = new DataView(frame);
    return { type: 'audio.delta', seq: header.getUint32(0), turn_id: `t${header.getUint32(4)}`,
             offset: header.getUint32(8), samples: (frame.byteLength - 12) / 2 };
  };
  let sockets = 0;
  const note = (socket, way, frame) =>
    tap.frames.push({ at: performance.now(), socket, way, message: frame });
  window.WebSocket = class extends WebSocket {
    constructor(...given) {
      super(...given);
      this.number = sockets++;
      note(this.number, 'line', { type: 'connecting' });
      this.addEventListener('open', () => note(this.number, 'line', { type: 'open' }));
      this.addEventListener('close', ({ code }) =>
        note(this.number, 'line', { type: 'close', code }));
      this.addEventListener('message', ({ data }) => note(this.number, 'server', said(data)));
    }
    send(frame) {
      note(this.number, 'client', said(frame));
      super.send(frame);
    }
  };
  let last = 0;
  setInterval(() => {
    const played = window.classroom?.playedSamples ?? 0;
    if (played !== last) tap.samples.push([performance.now(), (last = played)]);
  }, 10);
}
"""


@dataclass(frozen=True)
class Frame:
    """One message of a page's line; `at` in milliseconds on the page's clock."""

    at: float
    socket: int
    way: str
    message: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.message["type"])

    @property
    def turn_id(self) -> str | None:
        return self.message.get("turn_id")


class Tape:
    """What has gone over the line so far, and how many samples were played when."""

    def __init__(self, page: Page) -> None:
        taken = page.evaluate("tap")
        self.frames = [Frame(**frame) for frame in taken["frames"]]
        self.played: list[tuple[float, int]] = [(at, total) for at, total in taken["samples"]]

    def of(self, *types: str, way: str = "server", turn: str | None = None) -> list[Frame]:
        return [
            frame
            for frame in self.frames
            if frame.way == way
            and (not types or frame.type in types)
            and (turn is None or frame.turn_id == turn)
        ]

    def one(self, kind: str, **which: str) -> Frame:
        (frame,) = self.of(kind, **which)
        return frame

    def numbered(self) -> list[int]:
        """The numbers of the messages received, in order, over all lines; skipped speech counts.

        What comes before `session.ready`, or says that the session ends, takes no number.
        """
        numbers: list[int] = []
        ready: set[int] = set()
        for frame in self.of():
            message = frame.message
            if frame.type == "session.ready":
                ready.add(frame.socket)
            elif frame.type == "session.ending" or frame.socket not in ready:
                continue
            elif frame.type == "audio.skipped":
                numbers.extend(range(message["from_seq"], message["to_seq"] + 1))
            else:
                numbers.append(message["seq"])
        return numbers

    def text(self, turn: str) -> str:
        return "".join(f.message["content"] for f in self.of("text.delta", turn=turn))

    def samples(self, turn: str) -> int:
        """Of a turn's speech received, which must come without a gap."""
        at = 0
        for frame in self.of("audio.delta", turn=turn):
            assert frame.message["offset"] == at
            at += frame.message["samples"]
        return at

    def played_at(self, at: float) -> int:
        """Samples played by then."""
        return max((total for when, total in self.played if when <= at), default=0)


def microphone(folder: Path, says: Sequence[str | float]) -> Path:
    """For the fake microphone: sentences spoken by flite and seconds of silence, played once."""
    parts = [flite(part) if isinstance(part, str) else silence(part) for part in says]
    file = folder / "said.wav"
    file.write_bytes(encode(joined(*parts), "wav", "pcm_s16le"))
    return Path(f"{file}{ONCE}")
