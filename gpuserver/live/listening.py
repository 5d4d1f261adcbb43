"""Listening to one session's open microphone: from chunks of sound to what the student said."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuserver.audio import SAMPLE_RATE, Audio
from gpuserver.errors import (
    AudioInvalid,
    AudioTooFast,
    EngineFailed,
    EngineStalled,
    GpuServerError,
    NoSpeech,
    NotUnderstood,
    SpeechUnavailable,
)
from gpuserver.language import Language, looks_finished
from gpuserver.live.endpointing import (
    FRAME_SECONDS,
    PRE_ROLL_FRAMES,
    START_FRAMES,
    Endpointer,
    Endpointing,
)
from gpuserver.live.hearing import Engine, Hearing
from gpuserver.live.partial_transcript import PartialTranscript
from gpuserver.microphone import Encoding, Microphone
from gpuserver.observability import get_logger
from gpuserver.providers import DETECTOR_FRAME, Transcript
from gpuserver.tutor.ai_engine import LEAST_CONFIDENCE

log = get_logger(__name__)

_AHEAD_SECONDS: Final = 5.0
"""How far the sound may run ahead of real time: what a client sends at once after a break."""
_WEBM_BYTES: Final = 64_000
"""What a second of WebM may take; Opus for speech takes a tenth of that."""
_PENDING_SECONDS: Final = 30.0
"""What may wait while the last words of a turn are being recognised."""
_STEP_FRAMES: Final = 6  # of about 0.1 ms, before others get their turn
_PARTIAL_FRAMES: Final = round(0.6 / FRAME_SECONDS)
_FIRST_FRAMES: Final = round(0.5 / FRAME_SECONDS) - START_FRAMES
"""From the start of the speech to the first partial transcript."""
_FRESH_FRAMES: Final = round(0.3 / FRAME_SECONDS)
_IDLE_SHARE: Final = 3
"""Recognising partial transcripts may take a quarter of the time."""
_RECOGNITION_SECONDS: Final = 20.0
_TRAILING_FRAMES: Final = 3
"""A hypothesis about so much of the silence after the last word is about the whole of it."""
_MS: Final = 1000 * FRAME_SECONDS

_Sound = NDArray[np.int16]


@dataclass(slots=True, eq=False)
class _Utterance:
    """What is being said: all its sound, from a little before the first speech."""

    language: Language
    frames: list[_Sound]
    words: PartialTranscript = field(default_factory=PartialTranscript)
    final: Transcript | None = None
    """All of it, once it is recognised up to a pause."""
    error: GpuServerError | None = None
    told_pause: bool = False
    asked_at: int = 0
    """Frames when it was last recognised."""
    not_before: float = 0.0
    """When it may be recognised again while it goes on."""


class Listening:
    """Hears one microphone and tells `hearing`. It costs next to nothing while nobody speaks."""

    def __init__(
        self,
        engine: Engine,
        endpointing: Endpointing,
        hearing: Hearing,
        *,
        language: Language,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._hearing, self._clock = engine, hearing, clock
        self._language = language
        self._detector = engine.detector()
        self._endpointer = Endpointer(endpointing)
        self._format: tuple[Encoding, int] = ("pcm16", SAMPLE_RATE)
        self._microphone = Microphone()
        self._refused: str | None = None  # the code of what the client was told last
        # Sound that has come in and not been heard yet; None stands for a commit.
        self._pending: deque[_Sound | None] = deque()
        self._pending_samples = 0
        self._rest: _Sound = np.empty(0, np.int16)
        self._ahead = 0.0
        self._arrived = clock()
        self._pre_roll: deque[_Sound] = deque(maxlen=PRE_ROLL_FRAMES + START_FRAMES)
        self._utterance: _Utterance | None = None
        self._closing = False
        self._asked = False
        self._wake = asyncio.Event()
        self._stopped = False
        self._group: asyncio.TaskGroup | None = None
        self._recognising: asyncio.Task[None] | None = None

    # What the client does

    @property
    def language(self) -> Language:
        return self._language

    @language.setter
    def language(self, language: Language) -> None:
        """From the next utterance on."""
        if language != self._language:
            self._language, self._refused = language, None

    @property
    def manual(self) -> bool:
        """Whether only `commit` ends a turn."""
        return self._endpointer.manual

    @manual.setter
    def manual(self, manual: bool) -> None:
        self._endpointer.manual = manual

    def configure(self, encoding: Encoding, sample_rate: int) -> None:
        """What `append` is given from now on; the same as before changes nothing."""
        if (encoding, sample_rate) != self._format:
            self._format = encoding, sample_rate
            self._microphone = Microphone(encoding, sample_rate)
            self._refused = None

    def append(self, data: bytes) -> None:
        """The next stretch of sound. It never waits.

        Sound that comes more than five seconds ahead of real time is left out. Raises
        AudioTooFast, AudioInvalid and SpeechUnavailable, each once until it is over.
        """
        now = self._clock()
        self._ahead = max(0.0, self._ahead - (now - self._arrived))
        self._arrived = now
        room = min(
            _AHEAD_SECONDS - self._ahead, _PENDING_SECONDS - self._pending_samples / SAMPLE_RATE
        )
        webm_seconds = len(data) / _WEBM_BYTES if self._format[0] == "webm" else 0.0
        if webm_seconds > room:
            # Before it is read: what holds no sound takes time all the same.
            self._refuse(AudioTooFast())
            return
        self._ahead += webm_seconds
        try:
            self._engine.hears(self._language)
            samples = self._microphone.feed(data, int(room * SAMPLE_RATE))
        except (SpeechUnavailable, AudioInvalid) as error:
            self._refuse(error)
            return
        if len(samples):
            self._ahead += max(0.0, len(samples) / SAMPLE_RATE - webm_seconds)
            self._pending.append(samples)
            self._pending_samples += len(samples)
            if self._pending_samples + len(self._rest) >= DETECTOR_FRAME:
                self._wake.set()
        if self._microphone.overflowed:
            self._refuse(AudioTooFast())
        elif self._ahead < _AHEAD_SECONDS / 2:
            self._refused = None

    def _refuse(self, error: GpuServerError) -> None:
        """A microphone sends fifty chunks a second: one complaint is enough."""
        if self._refused != error.code:
            self._refused = error.code
            raise error

    def commit(self) -> None:
        """All that was appended is a complete turn."""
        self._pending.append(None)
        self._wake.set()

    def clear(self) -> None:
        """Forget what was said since the last turn."""
        self._pending.clear()
        self._pending_samples = 0
        self._rest = self._rest[:0]
        self._microphone.drop_partial()
        self._detector.reset()
        if self._utterance is not None:
            self._go_on(self._utterance)
            self._end_speech()
        self._pre_roll.clear()

    def close(self) -> None:
        """Let `run` return."""
        self._stopped = True
        self._wake.set()

    # The work

    async def run(self) -> None:
        """Listen until `close` or cancellation. One call, by one owner."""
        async with asyncio.TaskGroup() as self._group:
            while not self._stopped:
                await self._wake.wait()
                self._wake.clear()
                if self._step():
                    self._wake.set()
                    await asyncio.sleep(0)
            if self._recognising is not None:
                self._recognising.cancel()

    def _step(self) -> bool:
        """Hear a little of what is pending; whether more is. While a turn ends, it waits."""
        for _ in range(_STEP_FRAMES):
            if self._closing or not self._fill():
                return False
            if len(self._rest) >= DETECTOR_FRAME:
                frame, self._rest = self._rest[:DETECTOR_FRAME], self._rest[DETECTOR_FRAME:]
                self._hear(frame)
            else:
                self._commit()
        return True

    def _fill(self) -> bool:
        """Put the next frame in front, or the next commit; False when there is neither yet."""
        parts, length = [self._rest], len(self._rest)
        while length < DETECTOR_FRAME and self._pending and self._pending[0] is not None:
            part = self._pending.popleft()
            assert part is not None
            parts.append(part)
            length += len(part)
            self._pending_samples -= len(part)
        if len(parts) > 1:
            self._rest = np.concatenate(parts)
        if length >= DETECTOR_FRAME:
            return True
        if not self._pending:
            return False
        self._pending.popleft()
        return True

    def _commit(self) -> None:
        if len(self._rest):
            last = np.zeros(DETECTOR_FRAME, np.int16)
            last[: len(self._rest)] = self._rest
            self._rest = self._rest[:0]
            self._hear(last)
        if self._utterance is not None:
            self._asked = True
            self._end_turn(self._utterance)
        else:
            self._pre_roll.clear()
            self._hearing.nothing(self._deaf() or NoSpeech())

    def _deaf(self) -> SpeechUnavailable | None:
        try:
            self._engine.hears(self._language)
        except SpeechUnavailable as error:
            return error
        return None

    def _hear(self, frame: _Sound) -> None:
        change = self._endpointer.feed(self._detector.score(frame))
        utterance = self._utterance
        if utterance is None:
            self._pre_roll.append(frame)
            if change == "start":
                self._utterance = _Utterance(self._language, list(self._pre_roll))
                self._utterance.asked_at = len(self._pre_roll) - _PARTIAL_FRAMES + _FIRST_FRAMES
                self._pre_roll.clear()
                self._hearing.speech_started()
            return
        utterance.frames.append(frame)
        if change == "end":
            self._end_turn(utterance)
        elif change == "pause":
            self._recognise(utterance)
        elif change == "go_on":
            self._go_on(utterance)
        elif self._endpointer.state == "speaking" and self._due(utterance):
            self._recognise(utterance)

    def _go_on(self, utterance: _Utterance) -> None:
        utterance.final = utterance.error = None
        if utterance.told_pause:
            utterance.told_pause = False
            self._hearing.go_on()

    def _due(self, utterance: _Utterance) -> bool:
        """Whether it is time for a partial transcript, or to be early for a pause that begins."""
        fresh = len(utterance.frames) - utterance.asked_at
        silent = self._endpointer.silent_frames
        if silent:
            return silent == _TRAILING_FRAMES and fresh > _FRESH_FRAMES
        return fresh >= _PARTIAL_FRAMES and self._clock() >= utterance.not_before

    # Recognition

    def _recognise(self, utterance: _Utterance) -> None:
        """Recognise what was said so far, unless a recognition is running: it comes again."""
        if self._recognising is None and self._group is not None:
            utterance.asked_at = len(utterance.frames)
            self._recognising = self._group.create_task(self._transcribe(utterance))

    async def _transcribe(self, utterance: _Utterance) -> None:
        end = len(utterance.frames)
        first = int(utterance.words.cut_ms / _MS)
        utterance.words.cut_ms = round(first * _MS)
        sound = Audio(np.concatenate(utterance.frames[first:end]))
        started = self._clock()
        result: Transcript | GpuServerError
        try:
            async with asyncio.timeout(_RECOGNITION_SECONDS):
                result = await self._engine.transcribe(sound, utterance.language)
        except TimeoutError:
            result = EngineStalled(engine="asr", limit=f"{_RECOGNITION_SECONDS:g}")
        except GpuServerError as error:
            result = error
        # The top of a recognition: a bug in one must not close the microphone.
        except Exception:
            log.exception("recognition failed")
            result = EngineFailed(engine="asr")
        self._recognising = None
        now = self._clock()
        utterance.not_before = now + _IDLE_SHARE * (now - started)
        if utterance is self._utterance:
            self._recognised(utterance, result, end)
        elif self._utterance is not None:  # the one before was cleared away
            self._look_again(self._utterance)

    def _recognised(
        self, utterance: _Utterance, result: Transcript | GpuServerError, end: int
    ) -> None:
        later = len(utterance.frames) - end
        silence = self._endpointer.silent_frames - later
        paused = self._endpointer.state == "paused"
        complete = later == 0 or (paused and silence >= _TRAILING_FRAMES)
        utterance.error = result if isinstance(result, GpuServerError) else None
        final = Transcript("", (), 0.0)
        if not isinstance(result, GpuServerError):
            words = utterance.words
            heard = result.text.strip() and result.confidence >= LEAST_CONFIDENCE
            if heard or words.stable:
                final = words.whole(result)
            if heard:
                words.hear(result, round(end * _MS))
                seconds = self._endpointer.speech_seconds
                self._hearing.partial(words.stable, words.tentative, words.confidence, seconds)
        if complete and (paused or self._closing):
            self._complete(utterance, final)
        else:
            self._look_again(utterance)

    def _complete(self, utterance: _Utterance, final: Transcript) -> None:
        """All that was said before this pause is recognised."""
        utterance.final = final
        if self._closing:
            self._finish(utterance, final)
            return
        self._endpointer.finished = not final.text or looks_finished(final.text, utterance.language)
        if final.text:
            utterance.told_pause = True
            self._hearing.pause(final, self._ended())
        if self._endpointer.over:
            self._end_turn(utterance)

    def _look_again(self, utterance: _Utterance) -> None:
        """Recognise what the last recognition was too early for."""
        waiting = self._closing or self._endpointer.state == "paused"
        if waiting and utterance.final is None:
            self._recognise(utterance)

    # The end of a turn

    def _end_turn(self, utterance: _Utterance) -> None:
        """What comes in from now on belongs to the next turn, and waits for the end of this."""
        self._closing = True
        if utterance.final is not None:
            self._finish(utterance, utterance.final)
        else:
            self._recognise(utterance)

    def _finish(self, utterance: _Utterance, final: Transcript) -> None:
        asked, seconds, ended = self._asked, self._endpointer.speech_seconds, self._ended()
        self._end_speech()
        if final.text:
            self._hearing.utterance(final, seconds, ended)
        elif utterance.error is not None:
            self._hearing.nothing(utterance.error)
        else:
            self._hearing.nothing(NotUnderstood() if asked else None)
        self._wake.set()

    def _end_speech(self) -> None:
        self._utterance = None
        self._closing = self._asked = False
        self._endpointer.reset()
        self._hearing.speech_stopped()

    def _ended(self) -> float:
        """When the last speech ended, as well as can be told from when its sound arrived."""
        later = self._pending_samples + len(self._rest)
        return self._arrived - later / SAMPLE_RATE - self._endpointer.silent_frames * FRAME_SECONDS
