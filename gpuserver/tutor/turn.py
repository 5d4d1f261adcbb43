"""One turn: a question in, events out, exactly one ending, nothing left running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Literal

from gpuserver.config import Settings
from gpuserver.errors import (
    AnswerTooLong,
    EngineFailed,
    GpuServerError,
    TurnTimeout,
    known_cause,
)
from gpuserver.language import Language, detect
from gpuserver.observability import get_logger
from gpuserver.providers import (
    LINE_SECONDS,
    Delta,
    Fallback,
    Passage,
    Piece,
    Request,
    Speech,
    Transcript,
    Waiting,
)
from gpuserver.providers.extractive import not_covered
from gpuserver.smalltalk import is_small_talk
from gpuserver.tutor import events, prompts
from gpuserver.tutor.ai_engine import AIEngine
from gpuserver.tutor.citations import Citations
from gpuserver.tutor.conversation import Conversation, Exchange, own_words
from gpuserver.tutor.sentences import speakable
from gpuserver.tutor.spoken import Spoken
from gpuserver.tutor.watchdog import Watchdog
from gpuserver.tutor.written import Voice, Written, whole_characters

log = get_logger(__name__)

_BURST: Final = 64
"""Deltas of one model before everybody else gets a turn: a burst of them waits for nothing."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a student asks: typed text, a whole recording, or words heard by an open microphone.

    `language` is the one expected where the words don't show it, and the one listened for; `speak`
    asks for a spoken answer.
    """

    language: Language
    text: str = ""
    clip: bytes | None = None
    transcript: Transcript | None = None
    speak: bool = False

    @property
    def is_voice(self) -> bool:
        return self.clip is not None or self.transcript is not None


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """How long a turn may take, in seconds, and how much may be said in it.

    `turn_seconds` bounds understanding and writing; speaking takes as long as it takes.
    """

    turn_seconds: float
    first_token_seconds: float
    token_seconds: float
    audio_seconds: float
    answer_chars: int


def limits_of(settings: Settings) -> TurnLimits:
    return TurnLimits(
        turn_seconds=settings.turn_timeout_seconds,
        first_token_seconds=settings.first_token_timeout_seconds,
        token_seconds=settings.token_timeout_seconds,
        audio_seconds=settings.max_audio_seconds,
        answer_chars=settings.max_answer_chars,
    )


class Turn:
    """One question being answered by one engine. Cancel the task that runs it to interrupt.

    Stages run side by side: the first clause is spoken while the model still writes. `clock` is
    monotonic, in seconds; `arrived` is when the question came in, or its speech ended, on it.
    """

    def __init__(
        self,
        engine: AIEngine,
        conversation: Conversation,
        question: Question,
        sink: events.Sink,
        *,
        kb_id: str | None,
        limits: TurnLimits,
        arrived: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        ahead: bool = False,
    ) -> None:
        """`ahead`: begun before the student had surely finished; `commit` makes it count."""
        self._engine, self._conversation = engine, conversation
        self._question, self._sink = question, sink
        self._kb_id, self._limits = kb_id, limits
        self._clock = clock
        self.began = False
        """Whether `run` has begun; a task that is cancelled at once never enters it."""
        self.spoken = Spoken()
        self._arrived = clock() if arrived is None else arrived
        self._timeline: dict[str, int] = {}
        self._asked = question.text
        self._written = Written(sink, self.mark)
        self._taken_chars = 0
        self._spoken_samples = 0
        self._heard_ms = 0
        self._topic = ""
        self._exchange: Exchange | None = None
        self._counts = not ahead
        self._half = ""
        self._half_thought = ""
        self._deadline = asyncio.timeout(None)
        self._thought_chars = 0
        self._odd = b""
        self._speaks = False

    async def run(self) -> None:
        """Answer, and write exactly one `Ended`; cancelled, it does so too before it stops."""
        self.began = True
        status: Literal["completed", "interrupted", "failed"] = "failed"
        error: GpuServerError | None = EngineFailed(engine="tutor")
        try:
            await self._sink.write(events.Started(self._question.text))
            await self._answer()
            status, error = "completed", None
        except asyncio.CancelledError:
            status, error = "interrupted", None
            raise
        except BaseExceptionGroup as group:
            error = known_cause(group)
        except GpuServerError as known:
            error = known
        finally:
            heard = self._remember(interrupted=status == "interrupted")
            self.mark("done")
            await self._sink.write(
                events.Ended(status, self._timeline, self._usage(), error, heard)
            )

    async def skip(self) -> None:
        """Write the turn of a question that was dropped before its answer began."""
        await self._sink.write(events.Started(self._question.text))
        self.mark("done")
        await self._sink.write(events.Ended("interrupted", self._timeline, self._usage(), None, ""))

    def commit(self) -> None:
        """The student has finished: from here on the turn counts, and enters the history."""
        self._counts = True
        self.mark("commit")
        if "first_audio" in self._timeline:
            # It was made ahead and is sent now.
            self._timeline["first_audio"] = self._timeline["commit"]

    def heard(self, ms: int, *, reported: bool) -> bool:
        """The student has heard so much of the speech, by report or by the clock; True if that
        corrects the history."""
        if reported and ms > 0 and "first_playback" not in self._timeline:
            self._timeline["first_playback"] = max(0, self._since() - ms)
        self._heard_ms = ms
        before = self._exchange
        if before is None or not before.interrupted:
            return False
        after = replace(before, answer=self._heard_text())
        if after == before or not self._conversation.amend(before, after):
            return False
        self._exchange = after
        return True

    def mark(self, stage: str) -> None:
        """Note when a stage was first reached."""
        if stage not in self._timeline:
            self._timeline[stage] = self._since()

    @property
    def exchange(self) -> Exchange | None:
        """What has entered the history, once the turn has ended."""
        return self._exchange

    async def _answer(self) -> None:
        # Speaking is not under the deadline: it takes as long as the answer is.
        async with asyncio.TaskGroup() as stages:
            try:
                async with asyncio.timeout(self._limits.turn_seconds) as self._deadline:
                    request = await self._understand()
                    await self._write(request, self._voice(stages, request.language))
            except TimeoutError:
                raise TurnTimeout(limit=round(self._limits.turn_seconds)) from None

    async def _understand(self) -> Request:
        """The question as words, with the passages that answer it."""
        question, language = self._question, self._question.language
        transcript = question.transcript
        if question.clip is not None:
            transcript = await self._engine.recognise(
                question.clip, language, self._limits.audio_seconds, self._kb_id
            )
        if transcript is not None:
            self._asked = transcript.text
            self.mark("transcript")
            await self._sink.write(events.Recognised(transcript))
        language = detect(self._asked, language)
        whole, passages, near = await self._retrieve(language)
        messages = prompts.messages(
            self._engine.tutor, self._conversation, passages, self._asked, language
        )
        return Request(
            messages,
            whole,
            passages,
            language,
            self._engine.tutor.sampling.sampling(),
            self._engine.adapter,
            near=near,
        )

    async def _retrieve(self, language: Language) -> tuple[str, list[Passage], list[Passage]]:
        """The question made whole, and the passages that answer it, or those near it where none
        surely does."""
        question = self._conversation.whole_question(self._asked, language)
        if is_small_talk(question, language):
            return question, [], []
        passages, near = await self._engine.retrieve(question, language, self._kb_id)
        if not passages:
            follows = self._conversation.whole_question(self._asked, language, loosely=True)
            if follows != question:
                passages, _ = await self._engine.retrieve(follows, language, self._kb_id)
                question = follows if passages else question
        near = near if not passages and own_words(question) else []
        self.mark("passages")
        if passages:
            self._topic = passages[0].heading
        if passages or near:
            await self._sink.write(events.Sources(passages, near))
        return question, passages, near

    def _voice(self, stages: asyncio.TaskGroup, language: Language) -> Voice | None:
        """What speaks the answer; None for one in writing only."""
        self._speaks = self._question.speak and language in self._engine.speaks
        if not self._speaks:
            return None
        # The answer's length bounds it. A model that had to wait for its paced speech would hold
        # its place in the engine's batch for minutes.
        clauses: asyncio.Queue[str | None] = asyncio.Queue()
        stages.create_task(self._speak(clauses, language))
        return Voice(clauses)

    async def _write(self, request: Request, voice: Voice | None) -> None:
        """Text deltas to the sink and, clause by clause, to the voice."""
        cited = Citations(request.passages, self._engine.likeness, own=self._asked)
        limits = self._limits
        count = 0
        async with Watchdog("llm") as watchdog, aclosing(self._pieces(request)) as pieces:
            watchdog.expect(limits.first_token_seconds)
            async for piece in pieces:
                watchdog.relax()
                count += 1
                if count % _BURST == 0:
                    await asyncio.sleep(0)
                if not isinstance(piece, Delta) or piece.thought:
                    await self._tell(piece)
                    in_line = isinstance(piece, Waiting)
                    first = limits.first_token_seconds
                    watchdog.expect(max(first, LINE_SECONDS) if in_line else first)
                    continue
                await self._written.give(cited.feed(self._take(piece.text)), cited, voice)
                watchdog.expect(limits.token_seconds)
        await self._written.end(cited, voice)

    def _pieces(self, request: Request) -> AsyncGenerator[Piece, None]:
        """The model's answer, or in its place that the material has none."""
        question = request.question
        # "Go on" is about what was said before, which the model knows.
        asks = own_words(question) and not is_small_talk(question, request.language)
        outside = bool(asks) and not request.passages
        if outside and self._engine.declines:
            return _declined(request)
        self._written.beyond = outside and self._engine.tutor.outside == "general"
        return self._engine.generate(request)

    async def _tell(self, piece: Piece) -> None:
        """What a model gives besides its answer."""
        match piece:
            case Delta(text):
                thought, self._half_thought = whole_characters(self._half_thought + text)
                self._thought_chars += len(thought)
                # As long as an answer may be: what is thought beyond that, nobody reads.
                within = self._thought_chars <= self._limits.answer_chars
                if thought and within and self._engine.tutor.show_thoughts:
                    await self._sink.write(events.Thought(thought))
            case Waiting(position, eta_s):
                # A place in the line is shown, and a turn that has not begun uses up no time.
                now = asyncio.get_running_loop().time()
                self._deadline.reschedule(now + self._limits.turn_seconds)
                await self._sink.write(events.InLine(position, eta_s))
            case Fallback(provider):
                # It answers from the passages alone, and says itself that there are none.
                self._written.beyond &= provider != "extractive"
                await self._sink.write(events.AnsweredBy(provider))

    def _take(self, text: str) -> str:
        """What the model wrote, counted, and never half a character. Raises AnswerTooLong."""
        if not self._taken_chars:
            self.mark("first_token")
        if self._half or not text.isascii():
            text, self._half = whole_characters(self._half + text)
        self._taken_chars += len(text)
        if self._taken_chars > self._limits.answer_chars:
            raise AnswerTooLong(limit=self._limits.answer_chars)
        return text

    async def _speak(self, clauses: asyncio.Queue[str | None], language: Language) -> None:
        limit = self._limits.token_seconds
        while (clause := await clauses.get()) is not None:
            self.spoken.begin(clause, self._spoken_ms)
            words = speakable(clause, language)
            if not words:
                continue
            self._odd = b""
            speaking = self._engine.speak(words, language)
            async with Watchdog("tts") as watchdog, aclosing(speaking) as chunks:
                watchdog.expect(limit)
                async for speech in chunks:
                    watchdog.relax()
                    await self._utter(self._whole_samples(speech))
                    watchdog.expect(limit)
        await self._sink.write(events.SpeechDone())

    def _whole_samples(self, speech: Speech) -> Speech:
        """Speech that was cut within a sample, put together. Raises EngineFailed."""
        if speech.sample_rate != self._engine.sample_rate:
            # The clock of the speech would be wrong from here on, and so would what is heard.
            raise EngineFailed(engine="tts")
        if not self._odd and not len(speech.pcm) % 2:
            return speech
        pcm = self._odd + speech.pcm
        whole = len(pcm) & ~1
        self._odd = pcm[whole:]
        return replace(speech, pcm=pcm[:whole])

    async def _utter(self, speech: Speech) -> None:
        if not speech.pcm:
            return
        self.mark("first_audio")
        chunk = events.SpeechChunk(speech, self._spoken_samples)
        self._spoken_samples += len(speech.pcm) // 2
        self.spoken.add(speech.words, chunk.start_ms, self._spoken_ms)
        await self._sink.write(chunk)

    @property
    def _spoken_ms(self) -> int:
        return self._spoken_samples * 1000 // self._engine.sample_rate

    def _since(self) -> int:
        """Milliseconds since the question, for people to read."""
        return max(0, round((self._clock() - self._arrived) * 1000))

    def _usage(self) -> dict[str, int]:
        return {"text_chars": self._written.chars, "speech_samples": self._spoken_samples}

    def _heard_text(self) -> str:
        """What the student has of the answer: what was heard, or read where there is no voice."""
        if self._speaks:
            return self.spoken.until(self._heard_ms)
        return self._written.text

    def _remember(self, *, interrupted: bool) -> str | None:
        """What was said enters the history, also when the answer was cut short."""
        heard = self._heard_text() if interrupted else None
        if self._asked and (self._written.chars or interrupted) and self._counts:
            answer = self._written.text if heard is None else heard
            self._exchange = Exchange(self._asked, answer, self._topic, interrupted)
            self._conversation.add(self._exchange)
        return heard


async def _declined(request: Request) -> AsyncGenerator[Piece, None]:
    yield Delta(not_covered(request))
