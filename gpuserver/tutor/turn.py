"""One turn: a question in, events out, exactly one ending, nothing left running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Literal

from gpuserver.errors import EngineFailed, GpuServerError, TurnTimeout, known_cause
from gpuserver.language import Language, detect
from gpuserver.observability import get_logger
from gpuserver.providers import Passage, Request
from gpuserver.smalltalk import is_small_talk
from gpuserver.tutor import events, prompts
from gpuserver.tutor.ai_engine import AIEngine
from gpuserver.tutor.conversation import Conversation, Exchange
from gpuserver.tutor.sentences import Clauses, speakable

log = get_logger(__name__)

_CLAUSES_AHEAD: Final = 32
"""Clauses the model may write ahead of the voice before it is made to wait."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a student asks: typed text, or a whole recording; `speak` asks for a spoken answer.

    `language` is the one expected where the words don't show it, and the one listened for.
    """

    language: Language
    text: str = ""
    clip: bytes | None = None
    speak: bool = False


class Turn:
    """One question being answered by one engine. Cancel the task that runs it to interrupt.

    Stages run side by side, joined by a bounded queue: the first clause is spoken while the model
    still writes. `clock` is monotonic, in seconds; `arrived` is when the question came in, on it.
    """

    def __init__(
        self,
        engine: AIEngine,
        conversation: Conversation,
        question: Question,
        sink: events.Sink,
        *,
        kb_id: str | None,
        timeout: float,
        max_audio_seconds: float,
        arrived: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._conversation = engine, conversation
        self._question, self._sink = question, sink
        self._kb_id, self._timeout = kb_id, timeout
        self._max_audio_seconds = max_audio_seconds
        self._clock = clock
        self.began = False
        """Whether `run` has begun; a task that is cancelled at once never enters it."""
        self._arrived = clock() if arrived is None else arrived
        self._timeline: dict[str, int] = {}
        self._asked = question.text
        self._written: list[str] = []
        self._spoken_samples = 0
        self._topic = ""

    async def run(self) -> None:
        """Answer, and write exactly one `Ended`; cancelled, it does so too before it stops."""
        self.began = True
        status: Literal["completed", "interrupted", "failed"] = "failed"
        error: GpuServerError | None = EngineFailed(engine="tutor")
        try:
            await self._sink.write(events.Started())
            async with asyncio.timeout(self._timeout):
                await self._answer()
            status, error = "completed", None
        except TimeoutError:
            error = TurnTimeout(limit=round(self._timeout))
        except asyncio.CancelledError:
            status, error = "interrupted", None
            raise
        except BaseExceptionGroup as group:
            error = known_cause(group)
        except GpuServerError as known:
            error = known
        finally:
            self._remember()
            self._mark("done")
            await self._sink.write(events.Ended(status, self._timeline, self._usage(), error))

    async def skip(self) -> None:
        """Write the turn of a question that was dropped before its answer began."""
        await self._sink.write(events.Started())
        self._mark("done")
        await self._sink.write(events.Ended("interrupted", self._timeline, self._usage()))

    async def _answer(self) -> None:
        language = self._question.language
        if self._question.clip is not None:
            transcript = await self._engine.recognise(
                self._question.clip, language, self._max_audio_seconds
            )
            self._asked = transcript.text
            self._mark("transcript")
            await self._sink.write(events.Recognised(transcript))
        language = detect(self._asked, language)
        whole = self._conversation.whole_question(self._asked, language)
        passages = await self._retrieve(whole, language)
        request = Request(
            prompts.messages(
                self._engine.tutor.persona, self._conversation, passages, self._asked, language
            ),
            whole,
            passages,
            language,
        )
        await self._write_and_speak(request)
        await self._sink.write(events.TextDone("".join(self._written)))

    async def _retrieve(self, question: str, language: Language) -> list[Passage]:
        if is_small_talk(question, language):
            return []
        passages = await self._engine.retrieve(question, language, self._kb_id)
        self._mark("passages")
        if passages:
            self._topic = passages[0].heading
            await self._sink.write(events.Sources(passages))
        return passages

    async def _write_and_speak(self, request: Request) -> None:
        clauses: asyncio.Queue[str | None] | None = None
        async with asyncio.TaskGroup() as stages:
            if self._question.speak and request.language in self._engine.speaks:
                clauses = asyncio.Queue(_CLAUSES_AHEAD)
                stages.create_task(self._speak(clauses, request.language))
            await self._write(request, clauses)

    async def _write(self, request: Request, clauses: asyncio.Queue[str | None] | None) -> None:
        """Text deltas to the sink and, clause by clause, to the voice."""
        splitter = Clauses() if clauses is not None else None
        async with aclosing(self._engine.generate(request)) as deltas:
            async for delta in deltas:
                self._mark("first_token")
                self._written.append(delta.text)
                await self._sink.write(events.TextDelta(delta.text))
                if splitter is not None and clauses is not None:
                    for clause in splitter.feed(delta.text):
                        self._mark("first_clause")
                        await clauses.put(clause)
        if splitter is not None and clauses is not None:
            for clause in splitter.flush():
                self._mark("first_clause")
                await clauses.put(clause)
            await clauses.put(None)

    async def _speak(self, clauses: asyncio.Queue[str | None], language: Language) -> None:
        while (clause := await clauses.get()) is not None:
            words = speakable(clause, language)
            if not words:
                continue
            async with aclosing(self._engine.speak(words, language)) as chunks:
                async for speech in chunks:
                    self._mark("first_audio")
                    await self._sink.write(events.SpeechChunk(speech, self._spoken_samples))
                    self._spoken_samples += len(speech.pcm) // 2

    def _mark(self, stage: str) -> None:
        if stage not in self._timeline:
            self._timeline[stage] = round((self._clock() - self._arrived) * 1000)

    def _usage(self) -> dict[str, int]:
        return {
            "text_chars": sum(map(len, self._written)),
            "speech_samples": self._spoken_samples,
        }

    def _remember(self) -> None:
        """What was said enters the history, also when the answer was cut short."""
        if self._asked and self._written:
            answer = "".join(self._written)
            self._conversation.add(Exchange(self._asked, answer, self._topic))
