"""What one tutor can do, over shared runtimes, and the cache of such engines."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from gpuserver import audio
from gpuserver.errors import (
    EngineFailed,
    GpuServerError,
    NoSpeech,
    NotUnderstood,
    SpeechUnavailable,
    known_cause,
)
from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.language import LANGUAGES, Language
from gpuserver.observability import get_logger
from gpuserver.providers import (
    ASR,
    LLM,
    TTS,
    VAD,
    Detector,
    Kind,
    Passage,
    Piece,
    Request,
    RuntimeKey,
    Speech,
    Transcript,
    Vocabulary,
)
from gpuserver.runtimes.runtimes import Runtimes
from gpuserver.tutor.course_words import CourseWords
from gpuserver.tutor.fallback import Chain
from gpuserver.tutor.tutors import Catalogue, Tutor

log = get_logger(__name__)

LEAST_CONFIDENCE: Final = 0.1
"""A recogniser with a closed vocabulary hears some word in any noise; that measures below this."""
_WARM_UP: Final = "Hello, let us begin."


class AIEngine:
    """LLM, ASR, TTS and course knowledge of one tutor. It keeps nothing of any student."""

    def __init__(
        self,
        tutor: Tutor,
        keys: Mapping[Kind, RuntimeKey],
        llm: LLM,
        asr: ASR | None,
        tts: TTS | None,
        vad: VAD,
        knowledge: KnowledgeBases,
        words: CourseWords | None,
        adapter: str = "",
        held: frozenset[RuntimeKey] = frozenset(),
    ) -> None:
        """`adapter`: the folder of the tutor's LoRA adapter, "" for none; `held`: its leases."""
        self.tutor = tutor
        self.keys = keys
        self.adapter = adapter
        self.held = held
        self._llm, self._asr, self._tts, self._vad = llm, asr, tts, vad
        self._knowledge = knowledge
        self._words = words

    @property
    def declines(self) -> bool:
        """Whether a question that no passage covers is not for its model, which could answer it
        from elsewhere; the extractive engine can't."""
        return self.tutor.outside == "decline" and self.keys["llm"].provider != "extractive"

    @property
    def listens(self) -> list[Language]:
        """Languages it recognises by ear."""
        return [x for x in LANGUAGES if self._asr is not None and x in self._asr.languages]

    @property
    def speaks(self) -> list[Language]:
        """Languages it speaks aloud."""
        if self._tts is None:
            return []
        own = self.tutor.voices or self._tts.voices
        return [x for x in LANGUAGES if x in self._tts.voices and x in own]

    @property
    def voices(self) -> dict[Language, str]:
        """The voice it speaks each of its languages in."""
        own = self.tutor.voices
        return {x: own.get(x) or self._tts.voices[x] for x in self.speaks if self._tts is not None}

    @property
    def sample_rate(self) -> int:
        """Of its speech, in hertz; 0 where it has no voice."""
        return self._tts.sample_rate if self._tts is not None else 0

    def hears(self, language: Language) -> None:
        """Raises SpeechUnavailable, with the fix, if it can't recognise this language."""
        if language not in self.listens:
            fix = "ASR_PROVIDER to a recogniser that knows it"
            raise SpeechUnavailable(language=language, fix=fix)

    async def recognise(
        self, clip: bytes, language: Language, max_seconds: float, kb_id: str | None = None
    ) -> Transcript:
        """The words of a whole recording; `kb_id` as `transcribe`.

        Raises AudioInvalid, AudioTooLong, NoSpeech, NotUnderstood, SpeechUnavailable, EngineFailed.
        """
        self.hears(language)
        speech = await asyncio.to_thread(self._listen, clip, max_seconds)
        transcript = await self.transcribe(speech, language, kb_id)
        if not transcript.text.strip() or transcript.confidence < LEAST_CONFIDENCE:
            raise NotUnderstood
        return transcript

    async def transcribe(
        self, speech: audio.Audio, language: Language, kb_id: str | None = None
    ) -> Transcript:
        """The words of a stretch of sound at 16 kHz; the caller judges whether they are any.

        Listened for are the words of the session's knowledge base and of the tutor's courses.
        Raises SpeechUnavailable, EngineFailed.
        """
        self.hears(language)
        assert self._asr is not None
        return await self._asr.transcribe(speech, language, await self._vocabulary(kb_id))

    def ear(self, kb_id: str | None) -> Ear:
        """What listens to the microphone of a session with this knowledge base."""
        return Ear(self, kb_id)

    async def learn(self, kb_id: str | None) -> None:
        """Get ready to hear the words of a session's knowledge base before they are said."""
        if self.listens and self._kb_ids(kb_id) != self.tutor.knowledge:
            # What fails here fails again, and is told, when something is said.
            with suppress(GpuServerError):
                await self._vocabulary(kb_id)

    async def _vocabulary(self, kb_id: str | None) -> Vocabulary | None:
        if self._words is None:
            return None
        try:
            return await self._words.of(self._kb_ids(kb_id))
        except GpuServerError as error:
            # Better without the words of that knowledge base than not at all.
            log.warning("course words can't be had", tutor=self.tutor.id, code=error.code)
            return await self._words.of(self.tutor.knowledge)

    def detector(self) -> Detector:
        """What finds the speech in one open microphone."""
        return self._vad.detector()

    def _listen(self, clip: bytes, max_seconds: float) -> audio.Audio:
        speech = self._vad.trim(audio.decode(clip, max_seconds))
        if speech is None:
            raise NoSpeech
        return speech

    async def retrieve(
        self, question: str, language: Language, kb_id: str | None
    ) -> tuple[list[Passage], list[Passage]]:
        """Passages that answer the question, best first, and where none surely does those near it.

        Searched are the session's knowledge base, if it is known, and the tutor's own courses.
        """
        kb_ids = self._kb_ids(kb_id)
        return await asyncio.to_thread(self._knowledge.find, question, language, kb_ids)

    async def likeness(
        self, sentence: str, others: Sequence[str], language: Language
    ) -> list[float] | None:
        """The cosines of a sentence to others, on MiniLM's scale; None where the embedding model
        does not know the language. Raises EngineFailed."""
        return await asyncio.to_thread(self._knowledge.likeness, sentence, others, language)

    def _kb_ids(self, kb_id: str | None) -> tuple[str, ...]:
        own = [kb_id] if kb_id is not None and self._knowledge.known(kb_id) else []
        return tuple(dict.fromkeys([*own, *self.tutor.knowledge]))

    def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """The answer as it is written."""
        return self._llm.generate(request)

    def speak(self, clause: str, language: Language) -> AsyncGenerator[Speech, None]:
        """A clause aloud, in this tutor's voice for the language."""
        if self._tts is None:
            raise EngineFailed(engine="tts")
        voice = self.tutor.voices.get(language, "")
        return self._tts.speak(clause, language, voice, self.tutor.speed)

    async def warm_up(self) -> None:
        """Run every model once, so that the first student does not pay for it."""
        await self.retrieve(_WARM_UP, "en", None)
        async with aclosing(self.generate(Request((), _WARM_UP, (), "en"))) as deltas:
            async for _ in deltas:
                pass
        if self._tts is not None:
            for language in self.speaks:
                async for _ in self.speak(_WARM_UP if language == "en" else "你好。", language):
                    pass
        if self._asr is not None and self.listens:
            silence = audio.Audio(np.zeros(audio.SAMPLE_RATE // 2, np.int16))
            await self.transcribe(silence, self.listens[0])


@dataclass(frozen=True, slots=True)
class Ear:
    """An engine as the microphone of one session needs it."""

    _engine: AIEngine
    _kb_id: str | None

    def hears(self, language: Language) -> None:
        """Raises SpeechUnavailable."""
        self._engine.hears(language)

    def detector(self) -> Detector:
        return self._engine.detector()

    async def transcribe(self, speech: audio.Audio, language: Language) -> Transcript:
        """As the engine's, with the words of the session's knowledge base."""
        return await self._engine.transcribe(speech, language, self._kb_id)


@dataclass(slots=True, eq=False)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    engine: AIEngine | None = None
    leases: int = 0


class Engines:
    """One AIEngine per tutor, built once under concurrency, dropped only while nobody uses it."""

    def __init__(
        self,
        catalogue: Catalogue,
        runtimes: Runtimes,
        knowledge: KnowledgeBases,
        idle_limit: int,
        first_token_seconds: float,
    ) -> None:
        """`first_token_seconds`: a tutor's chat models together have so long to begin an answer."""
        self._catalogue, self._runtimes, self._knowledge = catalogue, runtimes, knowledge
        self._idle_limit = idle_limit
        self._first_token_seconds = first_token_seconds
        # Least recently used first.
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return sum(entry.engine is not None for entry in self._entries.values())

    async def get_ai_engine(self, tutor_id: int) -> AIEngine:
        """The engine of a tutor. Unleased: it may be dropped as soon as the caller looks away."""
        async with self.lease(tutor_id) as engine:
            return engine

    @asynccontextmanager
    async def lease(self, tutor_id: int) -> AsyncIterator[AIEngine]:
        """The engine of a tutor, kept for as long as the block runs.

        Raises TutorNotFound, ProviderUnavailable. A failed build leaves nothing behind.
        """
        tutor = self._catalogue.resolve(tutor_id)
        entry = self._entries.setdefault(tutor.id, _Entry())
        self._entries.move_to_end(tutor.id)
        entry.leases += 1
        try:
            async with entry.lock:
                if entry.engine is None:
                    entry.engine = await self._build(tutor)
            yield entry.engine
        finally:
            entry.leases -= 1
            for key in entry.engine.held if entry.engine is not None else ():
                self._runtimes.touch(key)
            await self._drop_idle()

    async def remove(self, tutor_id: int) -> bool:
        """Drop a tutor's engine if nobody uses it; says whether it is gone."""
        entry = self._entries.get(tutor_id)
        if entry is not None and entry.leases == 0:
            await self._drop(tutor_id)
        return tutor_id not in self._entries

    # What the runtimes ask (`Lessees`)

    def users(self, key: RuntimeKey) -> list[Tutor]:
        """The tutors whose engines hold a runtime."""
        return [entry.engine.tutor for entry in self._holding(key) if entry.engine is not None]

    def spare(self, key: RuntimeKey) -> int:
        """How many engines hold a runtime that nobody uses."""
        return sum(entry.leases == 0 for entry in self._holding(key))

    def active(self, key: RuntimeKey) -> bool:
        """Whether somebody uses an engine that holds it."""
        return any(entry.leases for entry in self._holding(key))

    async def give_back(self, key: RuntimeKey) -> None:
        """Drop the engines that hold it and that nobody uses."""
        for tutor_id in list(self._entries):
            entry = self._entries.get(tutor_id)
            if entry is not None and entry.leases == 0 and entry in self._holding(key):
                await self._drop(tutor_id)

    def _holding(self, key: RuntimeKey) -> list[_Entry]:
        entries = self._entries.values()
        return [e for e in entries if e.engine is not None and key in e.engine.held]

    async def close(self) -> None:
        """Drop every engine; nobody may hold a lease any more."""
        while self._entries:
            await self._drop(next(iter(self._entries)))

    async def _drop_idle(self) -> None:
        idle = [i for i, e in self._entries.items() if e.leases == 0]
        unbuilt = [i for i in idle if self._entries[i].engine is None]
        built = [i for i in idle if self._entries[i].engine is not None]
        excess = max(0, len(built) - self._idle_limit)
        for tutor_id in [*unbuilt, *built[:excess]]:
            # Closing the one before took time, in which this one may have found a user.
            if tutor_id in self._entries and self._entries[tutor_id].leases == 0:
                await self._drop(tutor_id)

    async def _drop(self, tutor_id: int) -> None:
        entry = self._entries.pop(tutor_id)
        if entry.engine is not None:
            await self._release(entry.engine.held)
            log.info("engine dropped", tutor=tutor_id)

    async def _release(self, keys: Iterable[RuntimeKey]) -> None:
        """All of them, even when the caller is cancelled meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        for key in keys:
            try:
                await self._runtimes.release(key)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _build(self, tutor: Tutor) -> AIEngine:
        keys = self._catalogue.runtime_keys(tutor)
        chain = (keys["llm"], *self._catalogue.fallback_keys(tutor))
        held: dict[RuntimeKey, Any] = {}

        async def hold(key: RuntimeKey) -> None:
            held[key] = await self._runtimes.acquire(key)

        try:
            async with asyncio.TaskGroup() as loading:
                for key in {*keys.values(), *chain}:
                    loading.create_task(hold(key))
            runtimes = {kind: held[key] for kind, key in keys.items()}
            words = await self._words(tutor, runtimes.get("asr"), runtimes.get("tts"))
        except BaseException as error:
            await self._release(held)
            if isinstance(error, BaseExceptionGroup):
                raise known_cause(error) from error
            raise
        log.info("engine built", tutor=tutor.id)
        llms = [(key.provider, held[key]) for key in chain]
        return AIEngine(
            tutor,
            keys,
            llms[0][1] if len(llms) == 1 else Chain(llms, self._first_token_seconds),
            runtimes.get("asr"),
            runtimes.get("tts"),
            runtimes["vad"],
            self._knowledge,
            words,
            self._catalogue.adapter(tutor),
            frozenset(held),
        )

    async def _words(self, tutor: Tutor, asr: ASR | None, tts: TTS | None) -> CourseWords | None:
        """The words of the tutor's course, and a decoder made of them before a student waits."""
        if asr is None:
            return None
        words = CourseWords(self._knowledge, asr, tts)
        await words.of(tutor.knowledge)
        return words
