"""Answers of an OpenAI-compatible server, a real one on the loopback: whole, odd and unusable."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from gpuserver.errors import (
    EngineFailed,
    PromptTooLong,
)
from gpuserver.providers import Delta, Message, Sampling
from tests.chat_server import (
    BREAK,
    DONE,
    Answer,
    ChatServer,
    event,
    refusal,
    usage,
    words,
)
from tests.openai.runtime import (
    ASKED,
    KEY,
    REQUEST,
    Notes,
    Use,
    ask,
    bystander,
    text,
    thought,
)

HISTORY: Final = tuple(
    Message("user" if n % 2 == 0 else "assistant", f"said {n}") for n in range(8)
)
TOO_LONG: Final = refusal(400, {"message": "This model's maximum context length is 9 tokens."})


# An answer


async def test_it_asks_for_what_the_tutor_wants_and_gives_the_answer_in_pieces(
    server: ChatServer, use: Use, notes: Notes
) -> None:
    sampling = Sampling(temperature=0.3, top_p=0.9, max_tokens=64, stop=("END",))
    server.scripts.append(
        Answer(
            [event(role="assistant"), event(""), event("A list "), event("is 列表."), event("!")]
            + [event(finish="stop"), usage(5, 31, 16), DONE]
        )
    )
    async with use(llm_api_key=KEY) as llm:
        pieces = await ask(llm, replace(REQUEST, sampling=sampling))
    assert pieces == [Delta("A list "), Delta("is 列表."), Delta("!")]
    asked = server.questions[0]
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "What is a list?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.3,
        "top_p": 0.9,
        "max_tokens": 64,
        "stop": ["END"],
    }
    assert notes.token_counts == [(5, 31, 16)]
    assert len(notes.firsts) == 1
    assert notes.failures == 0


async def test_tokens_are_counted_where_the_server_does_not_tell(
    server: ChatServer, use: Use, notes: Notes
) -> None:
    server.scripts.append(words("a ", "b ", "c"))
    async with use() as llm:
        await ask(llm)
    assert notes.token_counts == [(3, 0, 0)]


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"], ids=["lf", "crlf"])
async def test_a_stream_may_be_cut_anywhere(
    server: ChatServer, use: Use, size: int, ending: bytes
) -> None:
    stream = b"".join(
        [b": OPEN\n\n", b"event: message\nid: 7\nretry: 10\n", event("汉字 "), b":\n\n"]
        + [event("😀"), b"data:" + event("!")[6:], event(finish="stop"), DONE]
    ).replace(b"\n", ending)
    server.scripts.append(Answer([stream[i : i + size] for i in range(0, len(stream), size)]))
    async with use() as llm:
        assert await ask(llm) == [Delta("汉字 "), Delta("😀"), Delta("!")]


@pytest.mark.parametrize("end", [[], [DONE], [usage(1, 1)], [b"data: [DONE]"], [BREAK]])
async def test_an_answer_is_whole_once_the_model_has_stopped(
    server: ChatServer, use: Use, end: list[bytes]
) -> None:
    server.scripts.append(Answer([event("Yes."), event(finish="length"), *end]))
    async with use() as llm:
        assert await ask(llm) == [Delta("Yes.")]


async def test_connections_are_used_again(server: ChatServer, use: Use) -> None:
    async with use() as llm:
        for _ in range(3):
            await ask(llm)
    # One for the list of models, one for the questions.
    assert server.connections == 2


# Thoughts


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_what_the_server_calls_reasoning_is_no_answer(
    server: ChatServer, use: Use, name: str
) -> None:
    steps = [event(**{name: "Hm, "}), event(**{name: "<think>"}), event("\n\n"), event("Yes.")]
    server.scripts.append(Answer([*steps, event(finish="stop"), DONE]))
    async with use() as llm:
        pieces = await ask(llm)
    assert (thought(pieces), text(pieces)) == ("Hm, <think>", "Yes.")


MARKED: Final = "\n<think>Is 1 < 2? </thin, well.</think>\n\nYes: <think> is a mark. </think>"


@pytest.mark.parametrize("size", [1, 5, 200])
async def test_thoughts_between_marks_are_told_apart(
    server: ChatServer, use: Use, size: int
) -> None:
    cut = [MARKED[i : i + size] for i in range(0, len(MARKED), size)]
    server.scripts.append(words(*cut))
    async with use() as llm:
        pieces = await ask(llm)
    assert thought(pieces) == "Is 1 < 2? </thin, well."
    assert text(pieces) == "Yes: <think> is a mark. </think>"


@pytest.mark.parametrize("start", ["<th", "<thin air", "a <think>b</think>", "<"])
async def test_what_only_begins_like_a_mark_is_said(
    server: ChatServer, use: Use, start: str
) -> None:
    server.scripts.append(words(*start))
    async with use() as llm:
        pieces = await ask(llm)
    assert (thought(pieces), text(pieces)) == ("", start)


# What is no answer

_UNUSABLE: Final = {
    "no JSON": [b"data: {oops\n\n"],
    "no object": [b"data: [1]\n\n"],
    "no choices": [b'data: {"choices": {"a": 1}}\n\n'],
    "no text": [b'data: {"choices": [{"delta": {"content": [{"text": "parts"}]}}]}\n\n'],
    "bad UTF-8": [b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n'],
    "deep": [b"data: " + b"[" * 100_000 + b"\n\n"],
    "a page": [b"<html>Welcome</html>"],
    "no word": [event(finish="stop"), DONE],
    "only thoughts": [event(reasoning="Hm."), event(finish="length"), DONE],
    "cut off": [event("It begins")],
    "broken off": [event("It begins"), BREAK],
    "broken at once": [BREAK],
    "an endless line": [b"data: " + b"x" * 70_000] + [b"x" * 70_000] * 4,
    "endless data": [b"data: x\n" * 100],
    "an error": [event("It begins"), b'data: {"error": {"message": "bad", "code": 500}}\n\n'],
    "llama.cpp's error": [b'error: {"error": "bad"}\n\n'],
}


@pytest.mark.parametrize("steps", _UNUSABLE.values(), ids=_UNUSABLE.keys())
async def test_what_is_no_answer_fails_alone(
    server: ChatServer, use: Use, notes: Notes, steps: list[bytes]
) -> None:
    async with use() as llm, bystander(server, llm):
        server.scripts.append(Answer(steps))
        with pytest.raises(EngineFailed):
            await ask(llm)
        assert notes.failures == 1
        assert len(server.questions) == 2, "it is not asked again once it has begun to answer"
        assert text(await ask(llm)) == "Hello."


async def test_a_redirect_is_not_followed(server: ChatServer, use: Use) -> None:
    async with ChatServer().on() as elsewhere, use() as llm:
        server.scripts.append(refusal(307, Location=f"{elsewhere.url}/chat/completions"))
        with pytest.raises(EngineFailed):
            await ask(llm)
        assert not elsewhere.questions


# What a server does not take


async def test_a_server_without_stream_options_is_asked_without(
    server: ChatServer, use: Use
) -> None:
    server.scripts += [refusal(400, "bad request"), words("Yes.")]
    async with use() as llm:
        assert text(await ask(llm)) == "Yes."
        assert text(await ask(llm)) == "Hello."
    assert ["stream_options" in x.body for x in server.questions] == [True, False, False]


async def test_a_model_that_takes_no_temperature_is_asked_without(
    server: ChatServer, use: Use
) -> None:
    newer = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.scripts += [
        refusal(400, {"message": newer, "code": "unsupported_parameter"}),
        refusal(400, {"message": "Only the default is supported.", "param": "temperature"}),
        words("Yes."),
    ]
    async with use() as llm:
        assert text(await ask(llm)) == "Yes."
        await ask(llm)
    for asked in server.questions[2:]:
        assert not {"max_tokens", "temperature"} & set(asked.body)
        assert asked.body["max_completion_tokens"] == 512
        assert asked.body["top_p"] == 1
        assert "stream_options" in asked.body


async def test_a_conversation_that_is_too_long_loses_its_beginning(
    server: ChatServer, use: Use
) -> None:
    server.scripts += [TOO_LONG, TOO_LONG, words("Yes.")]
    request = replace(REQUEST, messages=(REQUEST.messages[0], *HISTORY, ASKED))
    async with use() as llm:
        assert text(await ask(llm, request)) == "Yes."
    kept = [[m["content"] for m in x.body["messages"]] for x in server.questions]
    assert kept[1] == ["Be kind.", "said 4", "said 5", "said 6", "said 7", "What is a list?"]
    assert kept[2] == ["Be kind.", "said 6", "said 7", "What is a list?"]


@pytest.mark.parametrize(
    "said",
    [
        TOO_LONG,
        refusal(413),
        refusal(400, {"message": "no", "code": "context_length_exceeded"}),
        refusal(400, {"message": "no", "type": "exceed_context_size_error"}),
        refusal(400, "The decoder prompt (length 9) is longer than the maximum model length of 8."),
        Answer([b'data: {"error": {"message": "exceeds the context window"}}\n\n']),
    ],
)
async def test_a_question_that_is_too_long_is_told_as_such(
    server: ChatServer, use: Use, notes: Notes, said: Answer
) -> None:
    async with use() as llm:
        for _ in range(4):
            server.scripts.append(said)
            with pytest.raises(PromptTooLong):
                await ask(llm)
        assert text(await ask(llm)) == "Hello.", "a long question does no harm to others"
    assert len(server.questions) == 5
    assert notes.failures == 0


async def test_a_request_that_is_refused_does_no_harm_to_others(
    server: ChatServer, use: Use
) -> None:
    async with use() as llm:
        for _ in range(4):
            server.scripts += [refusal(422), refusal(422)]
            with pytest.raises(EngineFailed):
                await ask(llm)
        assert text(await ask(llm)) == "Hello."
