"""`gpuserver kb eval` with a running server, questions that can't be used, and no server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuserver.cli.kb_eval import evaluate_base
from tests.commands import NOBODY, run
from tests.conftest import Serve

QUESTIONS = """question,document,heading,outside
What is a list?,,Lists,
How do I write a list in square brackets?,,Nested loops,
Who won the football cup?,,,yes
"""


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.csv"
    file.write_text(QUESTIONS, encoding="utf-8")
    return file


async def test_what_is_found_is_scored_and_the_worst_named(
    serve: Serve, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve() as server:
        assert await run(lambda: evaluate_base(questions, "loops", url=server.url)) == 0
        said = capsys.readouterr().out
        assert "recall@3" in said
        assert "0.500" in said
        worst = next(line for line in said.splitlines() if line.startswith("·"))
        assert "square brackets" in worst
        as_json = lambda: evaluate_base(questions, "loops", as_json=True, url=server.url)  # noqa: E731
        assert await run(as_json) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["all"]["questions"] == 2
    assert report["all"]["recall_at_1"] == 0.5
    assert report["all"]["refusal_rate"] == 1
    assert report["all"]["citation_precision"] is None
    assert report["worst"][0]["question"]["heading"] == "Nested loops"


async def test_answers_are_asked_for_as_a_student_does(
    serve: Serve, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve() as server:
        sentence = "A list is an ordered collection of items. [1]"
        server.cast.llm.scripts += [[sentence], [sentence], ["I don't know."]]
        command = lambda: evaluate_base(  # noqa: E731
            questions, "loops", answers=True, as_json=True, url=server.url
        )
        assert await run(command) == 0
        assert server.state.sessions.list() == []
    scores = json.loads(capsys.readouterr().out)["all"]
    assert scores["markers"] == 2
    assert scores["citation_precision"] == 0.5


async def test_a_question_names_a_document_by_its_file(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "questions.jsonl"
    async with serve() as server, server.management() as management:
        await management.create_knowledge_base("physics")
        text = b"# Levers\n\nA lever turns around its pivot.\n"
        await management.add_document("physics", "Levers of week 1.md", text)
        await management.indexed("physics")
        file.write_text('{"question":"What is a lever?","document":"levers of Week 1.md"}\n')
        command = lambda: evaluate_base(file, "physics", as_json=True, url=server.url)  # noqa: E731
        assert await run(command) == 0
    assert json.loads(capsys.readouterr().out)["all"]["recall_at_1"] == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"question,page\nWhat?,x\n", "Line 2 of the questions"),
        (b"", "Line 1 of the questions"),
        (b"\xff\xfe\x00", "UTF-8"),
        (None, "Can't read"),
    ],
)
async def test_questions_that_can_not_be_used_are_told(
    serve: Serve,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    sentence: str,
) -> None:
    file = tmp_path / "questions.csv"
    if content is not None:
        file.write_bytes(content)
    assert await run(lambda: evaluate_base(file, "loops", url=NOBODY)) == 1
    assert sentence in capsys.readouterr().err


async def test_a_base_or_a_server_that_is_not_there_is_told(
    serve: Serve, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve() as server:
        assert await run(lambda: evaluate_base(questions, "nothing", url=server.url)) == 1
    assert "nothing" in capsys.readouterr().err
    assert await run(lambda: evaluate_base(questions, "loops", url=NOBODY)) == 1
    assert "No server answers" in capsys.readouterr().err
