"""When the student begins to speak, pauses and has finished: a state machine over VAD scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from gpuserver.audio import SAMPLE_RATE
from gpuserver.providers import DETECTOR_FRAME

FRAME_SECONDS: Final = DETECTOR_FRAME / SAMPLE_RATE
PRE_ROLL_FRAMES: Final = 10
"""What is kept of the sound before the first speech: 320 ms."""

START_FRAMES: Final = 3
"""Frames of speech that begin a turn: 96 ms. A click is shorter."""

_SPEECH: Final = 0.5
_STILL_SPEECH: Final = 0.35
_AGAIN_FRAMES: Final = 2
_PAUSE_FRAMES: Final = 6  # 192 ms; the gaps within words are shorter

Change = Literal["start", "pause", "go_on", "end"]
State = Literal["idle", "speaking", "paused"]


@dataclass(frozen=True, slots=True)
class Endpointing:
    """How long a silence ends the student's turn, and how long a turn may be."""

    end_of_turn_seconds: float = 0.5
    unfinished_turn_seconds: float = 1.6
    max_audio_seconds: float = 60.0


class Endpointer:
    """Counts frames of 512 samples at 16 kHz; it knows no clock and no words.

    In `manual` mode no silence ends a turn.
    """

    def __init__(self, settings: Endpointing) -> None:
        self._settings = settings
        self.manual = False
        self.reset()

    def reset(self) -> None:
        """Wait for the next speech."""
        self.state: State = "idle"
        self.finished: bool | None = None
        """Whether what was said before the pause looks finished; None while nobody knows yet."""
        self.frames = 0
        """Frames since the first of the speech, with that one."""
        self.speech_frames = 0
        """Frames of speech among them."""
        self.silent_frames = 0
        """Frames since the last of speech."""
        self._run = 0

    @property
    def speech_seconds(self) -> float:
        """How much speech there was in this turn, its pauses left out."""
        return self.speech_frames * FRAME_SECONDS

    def feed(self, score: float) -> Change | None:
        """What changes with the next frame, which is speech with this probability."""
        if self.state == "idle":
            return self._listen(score)
        self.frames += 1
        speech = score > _SPEECH or (self.state == "speaking" and score >= _STILL_SPEECH)
        self._run = self._run + 1 if speech else 0
        self.silent_frames = 0 if speech else self.silent_frames + 1
        self.speech_frames += speech
        if self.frames * FRAME_SECONDS >= self._settings.max_audio_seconds:
            return "end"
        if self.state == "speaking" and self.silent_frames >= _PAUSE_FRAMES:
            self.state, self.finished = "paused", None
            return "pause"
        if self.state == "paused" and self._run >= _AGAIN_FRAMES:
            self.state = "speaking"
            return "go_on"
        return "end" if self.over else None

    @property
    def over(self) -> bool:
        """Whether the silence has become long enough for what was said.

        While nobody knows what was said it never is: the words come soon, and an answer needs them.
        """
        if self.state != "paused" or self.finished is None or self.manual or self._run:
            return False
        settings = self._settings
        limit = settings.end_of_turn_seconds if self.finished else settings.unfinished_turn_seconds
        return self.silent_frames * FRAME_SECONDS >= limit

    def _listen(self, score: float) -> Change | None:
        if self._run:
            self._run = self._run + 1 if score >= _STILL_SPEECH else 0
        elif score > _SPEECH:
            self._run = 1
        if self._run < START_FRAMES:
            return None
        self.state = "speaking"
        self.frames = self.speech_frames = self._run
        self.silent_frames = 0
        return "start"
