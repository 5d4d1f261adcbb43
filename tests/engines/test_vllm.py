"""The `vllm` provider with a real engine on the CPU and a tiny model that says what it is told."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpuserver.errors import EngineBusy, EngineFailed, PromptTooLong, ProviderUnavailable
from gpuserver.providers import Delta, Message, Passage, Piece, Request, Sampling, Waiting
from gpuserver.providers.vllm.prompt import render
from gpuserver.tutor import prompts
from gpuserver.tutor.conversation import Exchange
from gpuserver.tutor.tutors import Tutor
from tests.engines.conftest import MakeVllm, Vllm

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTION = (Message("system", "You are a tutor."), Message("user", "What is a list?"))
CONTEXT = 4096
DEADLINE = 120.0


def asking(
    messages: Sequence[Message] = QUESTION,
    adapter: Path | str = "",
    schema: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> Request:
    chosen = Sampling(**{"max_tokens": 16, **sampling})
    return Request(messages, "", (), "en", chosen, str(adapter), schema)


async def pieces(vllm: Vllm, request: Request) -> list[Piece]:
    async with asyncio.timeout(DEADLINE), aclosing(vllm.llm.generate(request)) as answer:
        return [piece async for piece in answer]


def tutor_of(persona: str) -> Tutor:
    return Tutor(id=1, name="Ada", persona=persona)


def said(answer: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in answer if isinstance(piece, Delta))


async def test_32_students_of_two_tutors_each_get_their_own_and_one_more_is_told_to_come_back(
    vllm: Vllm, adapters: Mapping[str, Path]
) -> None:
    names = list(itertools.islice(itertools.cycle(["ada", "bo"]), 32))
    asked = [asking(adapter=adapters[name], max_tokens=40, temperature=0.7) for name in names]
    async with asyncio.TaskGroup() as students:
        answers = [students.create_task(pieces(vllm, request)) for request in asked]
        while vllm.llm.status().waiting < 24:
            await asyncio.sleep(0)
        assert vllm.llm.status().running == 8
        with pytest.raises(EngineBusy) as busy:
            await pieces(vllm, asking())
        assert busy.value.retry_after is not None
        assert busy.value.retry_after >= 1
    for name, answer in zip(names, answers, strict=True):
        assert said(answer.result()) == {"ada": "Ada ", "bo": "Bo "}[name] * 40
    lines = [[x for x in a.result() if isinstance(x, Waiting)] for a in answers]
    # First come, first served: nobody is ever moved back, and the last waited behind all others.
    assert sum(bool(line) for line in lines) == 24
    for line in lines:
        positions = [waiting.position for waiting in line]
        assert positions == sorted(positions, reverse=True)
        assert all(waiting.eta_s >= 1 for waiting in line)
    assert lines[-1][0].position == 24
    assert vllm.llm.status().running == vllm.llm.status().waiting == 0
    assert max(vllm.meter.batches) == 8
    assert max(vllm.meter.waits) > 0


async def test_a_closed_answer_is_stopped_in_the_engine(
    vllm: Vllm, adapters: Mapping[str, Path]
) -> None:
    engine = vllm.llm._engine.llm()
    process = engine.output_processor.process_outputs
    made: list[int] = []

    def counted(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        made.extend(token for output in outputs for token in output.new_token_ids)
        return process(outputs, *args, **kwargs)

    engine.output_processor.process_outputs = counted
    try:
        request = asking(adapter=adapters["ada"], max_tokens=2000)
        async with aclosing(vllm.llm.generate(request)) as answer:
            for _ in range(5):
                await anext(answer)
        before = len(made)
        await asyncio.sleep(1.0)
    finally:
        engine.output_processor.process_outputs = process
    assert before < 1500
    assert len(made) <= before + 1
    assert engine.get_num_unfinished_requests() == 0
    assert vllm.llm.status().running == 0


async def test_an_answer_begins_token_by_token_and_goes_on_in_larger_pieces(
    vllm: Vllm, adapters: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long that even a slow machine makes several tokens in it.
    monkeypatch.setattr("gpuserver.providers.vllm._MOST_BEAT", 0.5)
    monkeypatch.setattr("gpuserver.providers.vllm._LEAST_BEAT", 0.5)
    deltas = await pieces(vllm, asking(adapter=adapters["ada"], max_tokens=100))
    assert said(deltas) == "Ada " * 100
    assert deltas[:8] == [Delta("Ada ")] * 8
    assert len(deltas) <= 60


async def test_a_student_who_leaves_the_line_holds_up_nobody(
    vllm: Vllm, adapters: Mapping[str, Path]
) -> None:
    first = [
        asyncio.create_task(pieces(vllm, asking(adapter=adapters["ada"], max_tokens=250)))
        for _ in range(8)
    ]
    while vllm.llm.status().running < 8:
        await asyncio.sleep(0)
    async with aclosing(vllm.llm.generate(asking())) as leaving:
        assert isinstance(await anext(leaving), Waiting)
        last = asyncio.create_task(pieces(vllm, asking(adapter=adapters["bo"])))
        while vllm.llm.status().waiting < 2:
            await asyncio.sleep(0)
    assert said(await last) == "Bo " * 16
    await asyncio.gather(*first)
    assert vllm.llm.status().running == 0


async def test_a_tutors_own_sampling(vllm: Vllm, adapters: Mapping[str, Path]) -> None:
    cold = [said(await pieces(vllm, asking(temperature=0.0))) for _ in range(2)]
    assert cold[0] == cold[1]
    hot = {said(await pieces(vllm, asking(temperature=1.5))) for _ in range(4)}
    assert len(hot) > 1
    stopped = asking(adapter=adapters["ada"], max_tokens=50, stop=("Ada Ada Ada",))
    assert said(await pieces(vllm, stopped)) == ""
    stopped = asking(adapter=adapters["bo"], max_tokens=50, stop=("o B",))
    assert said(await pieces(vllm, stopped)) == "B"
    await pieces(vllm, asking(adapter=adapters["ada"], max_tokens=7))
    assert vllm.meter.tokens_of[-1][0] == 7


async def test_an_adapter_that_was_not_announced_fails_alone(vllm: Vllm, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed):
        await pieces(vllm, asking(adapter=tmp_path))
    assert said(await pieces(vllm, asking()))


async def test_a_small_task_gets_json_that_fits_its_schema(vllm: Vllm) -> None:
    schema = {
        "type": "object",
        "properties": {
            "right": {"type": "boolean"},
            "mark": {"type": "integer", "minimum": 0, "maximum": 9},
            "topic": {"enum": ["lists", "loops"]},
        },
        "required": ["right", "mark", "topic"],
        "additionalProperties": False,
    }
    for _ in range(3):
        answer = json.loads(said(await pieces(vllm, asking(schema=schema, max_tokens=100))))
        assert answer.keys() == {"right", "mark", "topic"}
        assert isinstance(answer["right"], bool)
        assert answer["mark"] in range(10)
        assert answer["topic"] in {"lists", "loops"}


async def test_a_long_conversation_is_cut_at_its_beginning(vllm: Vllm) -> None:
    history = [Exchange(f"Question {n}?", f"Answer {n}. " * 60) for n in range(30)]
    passages = [Passage("1", "course", "lists.md", "Lists", "A list holds items.", "en")]
    messages = prompts.messages(tutor_of("You are Ada."), history, passages, "And a loop?", "en")
    engine = vllm.llm._engine.llm()
    prompt, room = await render(engine, asking(messages, max_tokens=500))
    text = engine.get_tokenizer().decode(prompt["prompt_token_ids"])
    assert room == 500
    assert len(prompt["prompt_token_ids"]) + room <= CONTEXT
    # Not one exchange less than there is room for.
    assert len(prompt["prompt_token_ids"]) + room > CONTEXT - 400
    kept = [n for n in range(30) if f"Question {n}?" in text]
    assert kept == list(range(kept[0], 30))
    assert kept[0] > 0
    assert f"Answer {kept[0]}." in text
    assert f"Answer {kept[0] - 1}." not in text
    assert "You are Ada." in text
    assert "A list holds items." in text
    assert "And a loop?" in text
    assert said(await pieces(vllm, asking(messages)))


async def test_a_question_that_is_too_long_by_itself_is_refused_and_harms_nobody(
    vllm: Vllm,
) -> None:
    messages = (*QUESTION, Message("assistant", "It holds items."), Message("user", "why " * 5000))
    with pytest.raises(PromptTooLong):
        await pieces(vllm, asking(messages))
    assert vllm.llm.status().running == 0
    assert said(await pieces(vllm, asking()))


async def test_an_answer_that_may_be_longer_than_the_context_leaves_room_for_the_question(
    vllm: Vllm,
) -> None:
    _, room = await render(vllm.llm._engine.llm(), asking(max_tokens=30_000))
    assert CONTEXT - 100 < room < CONTEXT


@pytest.mark.parametrize("tutor", ["", "ada", "bo"])
async def test_two_students_of_a_course_share_its_prefix(
    vllm: Vllm, adapters: Mapping[str, Path], tutor: str
) -> None:
    adapter = adapters[tutor] if tutor else ""
    persona = f"You are the tutor {tutor} of this course. " + "Be patient and ask back. " * 120
    text = "A list is an ordered collection of items in square brackets. " * 30
    passages = [Passage(str(n), "c", "lists.md", f"Lists {n}", text, "en") for n in range(3)]
    asked = [
        prompts.messages(tutor_of(persona), (), passages, question, "en")
        for question in ("How do I write a list?", "What does append do to it?")
    ]
    engine = vllm.llm._engine.llm()
    tokens = [(await render(engine, asking(m)))[0]["prompt_token_ids"] for m in asked]
    shared = sum(1 for _ in itertools.takewhile(lambda x: x[0] == x[1], zip(*tokens, strict=False)))
    block = engine.vllm_config.cache_config.block_size
    assert min(map(len, tokens)) >= 1500
    for messages in asked:
        await pieces(vllm, asking(messages, adapter))
    (_, _, before), (_, read, cached) = vllm.meter.tokens_of[-2:]
    # Nobody else's adapter has left anything there: what an adapter computes is its own.
    assert before < block
    assert read == len(tokens[1])
    assert cached >= 0.9 * (shared // block * block)


async def test_a_follow_up_finds_the_conversation_before_it(vllm: Vllm) -> None:
    persona = "You are the tutor of follow-ups. " * 60
    history = [Exchange(f"Question {n}?", f"The answer to it is {n}. " * 20) for n in range(4)]
    for turns in (3, 4):
        messages = prompts.messages(tutor_of(persona), history[:turns], (), "And then?", "en")
        await pieces(vllm, asking(messages))
    before, after = vllm.meter.tokens_of[-2:]
    assert after[2] > 0.6 * before[1]


async def test_it_tells_how_it_is_and_proves_it(vllm: Vllm) -> None:
    status = vllm.llm.status()
    assert status.state == "ready"
    assert len(status.pids) >= 1
    assert all(map(psutil.pid_exists, status.pids))
    count = len(vllm.meter.tokens_of)
    await vllm.llm.probe()
    assert vllm.meter.tokens_of[count][0] == 1
    # The warm-up has no messages.
    assert await pieces(vllm, Request((), "Hello.", (), "en")) is not None


async def test_first_tokens_are_timed(vllm: Vllm) -> None:
    count = len(vllm.meter.first_tokens)
    await pieces(vllm, asking())
    assert len(vllm.meter.first_tokens) == count + 1
    assert 0 < vllm.meter.first_tokens[-1] < DEADLINE


def spoiled(adapter: Path, folder: Path, **changes: bytes | None) -> Path:
    """A copy of an adapter with other content in some of its files, or without them."""
    folder.mkdir()
    for file in adapter.iterdir():
        content = changes.get(file.stem, file.read_bytes())
        if content is not None:
            (folder / file.name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"adapter_config": None}, "lacks adapter_config.json"),
        ({"adapter_config": b"{"}, "can't be read"),
        ({"adapter_config": b'{"r": 0}'}, "rank 1 to"),
        ({"adapter_model": None}, "lacks adapter_model.safetensors"),
        ({"adapter_model": b"\x00" * 64}, "can't be read"),
        ({"adapter_config": b'{"r": 4}'}, "another model"),
    ],
)
async def test_a_damaged_adapter_is_refused_before_the_engine_starts(
    changes: dict[str, bytes | None],
    problem: str,
    make_vllm: MakeVllm,
    chat_model: Path,
    adapters: Mapping[str, Path],
    tmp_path: Path,
) -> None:
    folder = spoiled(adapters["ada"], tmp_path / "adapter", **changes)
    made = make_vllm(chat_model, (str(folder),))
    with pytest.raises(ProviderUnavailable, match=problem):
        await asyncio.to_thread(made.llm.load)
    await asyncio.to_thread(made.llm.close)
    await asyncio.to_thread(made.llm.close)
    with pytest.raises(EngineFailed):
        await pieces(made, asking())


async def test_a_missing_model_is_refused_with_the_fix(make_vllm: MakeVllm, tmp_path: Path) -> None:
    made = make_vllm(tmp_path / "nowhere")
    with pytest.raises(ProviderUnavailable, match="Fix"):
        await asyncio.to_thread(made.llm.load)


async def test_a_damaged_model_is_refused_before_the_engine_starts(
    make_vllm: MakeVllm, chat_model: Path, tmp_path: Path
) -> None:
    copy = spoiled(chat_model, tmp_path / "model", model=b"\x00" * 64)
    made = make_vllm(copy)
    with pytest.raises(ProviderUnavailable, match=r"model\.safetensors is damaged\. Fix"):
        await asyncio.to_thread(made.llm.load)
    await asyncio.to_thread(made.llm.close)
