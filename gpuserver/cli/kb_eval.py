"""`gpuserver kb eval`: ask a running server questions whose passages are known, and score it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from websockets.exceptions import WebSocketException

from gpuserver.cli.kb import base_path
from gpuserver.cli.remote import Key, Refused, Remote, Url, talking
from gpuserver.cli.terminal import notes, out
from gpuserver.client import MessagesMissing, Ticket, converse
from gpuserver.course_errors import QuestionsInvalid
from gpuserver.knowledge.index import SHOWN_NEAR
from gpuserver.language import Language
from gpuserver.providers import Passage
from gpuserver.tutor.evaluation import (
    Ask,
    EvalQuestion,
    Poor,
    Reply,
    Report,
    Scores,
    evaluate,
    read_questions,
)

_SESSIONS: Final = "/mgmt/v1/sessions"
_LARGEST_FILE: Final = 32 << 20
_TURN_SECONDS: Final = 300
_USUAL_TUTOR: Final = 1


def evaluate_base(
    questions: Annotated[Path, typer.Argument(help="A CSV with a header row, or JSON Lines.")],
    kb: Annotated[str, typer.Option("--kb", help="The knowledge base.")],
    tutor: Annotated[int | None, typer.Option(help="Search this tutor's courses as well.")] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="Ask for whole answers, and check their citations.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    url: Url = "",
    key: Key = "",
) -> None:
    """Score what is found for questions whose passages are known."""
    with talking(url, key) as remote:
        asked = _in(remote, kb, _questions(questions))

        async def search(question: EvalQuestion) -> Reply:
            return await asyncio.to_thread(_found, remote, kb, tutor, question)

        async def answer(question: EvalQuestion) -> Reply:
            return await _answered(remote, kb, tutor, question)

        with _counted(answer if answers else search, len(asked)) as ask:
            report = asyncio.run(evaluate(asked, ask))
    if as_json:
        out.print(json.dumps(_plain(report), ensure_ascii=False), markup=False, soft_wrap=True)
        return
    out.print(_table(report))
    for poor in report.worst:
        out.print(_sentence(poor), markup=False, soft_wrap=True)


def _questions(file: Path) -> list[EvalQuestion]:
    """Raises Refused."""
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise Refused(f"{file} is too large to be a list of questions.")
        return read_questions(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"Can't read {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise Refused(f"{file} is not UTF-8; save it as that.") from error
    except QuestionsInvalid as error:
        raise Refused(str(error)) from error


def _in(remote: Remote, kb: str, questions: Sequence[EvalQuestion]) -> list[EvalQuestion]:
    """The questions with a document's id where they give its file name. Raises Refused."""
    documents = remote.get(base_path(kb, "documents"))["documents"]
    ids = {document["name"].casefold(): document["id"] for document in documents}
    return [
        question.model_copy(update={"document": ids.get(question.document.casefold())})
        if question.document.casefold() in ids
        else question
        for question in questions
    ]


def _found(remote: Remote, kb: str, tutor: int | None, question: EvalQuestion) -> Reply:
    """What the search finds, or only what is near where a tutor would say so. Raises Refused."""
    body = {"question": question.question, "language": question.language, "tutor_id": tutor}
    answer = remote.post(base_path(kb, "search"), body)
    found = [_passage(each, question.language, each["n"]) for each in answer["passages"]]
    if answer["covered"]:
        return Reply(found, "")
    near = [
        passage for passage, each in zip(found, answer["passages"], strict=True) if each["near"]
    ]
    return Reply([], "", near[:SHOWN_NEAR])


async def _answered(remote: Remote, kb: str, tutor: int | None, question: EvalQuestion) -> Reply:
    """What a student of this knowledge base gets, in a session of its own. Raises Refused."""
    body = {"tutor_id": _USUAL_TUTOR if tutor is None else tutor, "student_id": 1, "kb_id": kb}
    made = await asyncio.to_thread(remote.post, _SESSIONS, body)
    ticket = Ticket(made["session_id"], made["engine_url"], made["engine_token"])
    try:
        async with asyncio.timeout(_TURN_SECONDS), converse(ticket) as conversation:
            await conversation.update(output={"audio": False, "visemes": False})
            await conversation.text(question.question)
            messages = await conversation.turn()
    except (OSError, WebSocketException, MessagesMissing, ValueError) as error:
        raise Refused(f"The conversation broke off ({type(error).__name__}).") from error
    finally:
        await asyncio.to_thread(remote.delete, f"{_SESSIONS}/{ticket.session_id}")
    text, sources, near = "", [], []
    for message in messages:
        match message["type"]:
            case "text.delta":
                text += message["content"]
            case "sources":
                sources, near = message["passages"], message.get("near", [])
            case "error":
                raise Refused(message["content"], message["code"])
    found, others = (
        [_passage(each, question.language, each["passage"]) for each in some]
        for some in (sources, near)
    )
    return Reply(found, text, others)


def _passage(found: dict[str, Any], language: Language, n: int) -> Passage:
    """As much of a passage as its place: the evaluation asks for no more."""
    return Passage(
        id=f"{found['document_id']}/{n}",
        kb_id=found["kb_id"],
        document=found["document"],
        heading=found["heading"],
        text="",
        language=language,
        page=found["page"],
        document_id=found["document_id"],
        n=n,
    )


@contextmanager
def _counted(ask: Ask, total: int) -> Iterator[Ask]:
    """The same, with a bar."""
    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=notes, transient=True) as bar:
        task = bar.add_task("asking", total=total)

        async def counting(question: EvalQuestion) -> Reply:
            reply = await ask(question)
            bar.advance(task)
            return reply

        yield counting


def _table(report: Report) -> Table:
    """A row for each measure, a column for each language."""
    table = Table("", "all", *map(escape, report.by_language), box=box.SIMPLE_HEAD)
    groups = [report.all, *report.by_language.values()]
    table.add_row("questions", *(str(scores.asked) for scores in groups))
    for k in report.all.found_at:
        table.add_row(f"recall@{k}", *(_share(scores.recall(k)) for scores in groups))
    table.add_row("MRR", *(_share(scores.mrr) for scores in groups))
    table.add_row("citation precision", *(_share(s.citation_precision) for s in groups))
    table.add_row("outside questions", *(str(scores.outside) for scores in groups))
    table.add_row("refused of them", *(_share(scores.refusal_rate) for scores in groups))
    return table


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.3f}"


def _sentence(poor: Poor) -> str:
    """What went wrong with a question, and what was found."""
    if poor.question.outside:
        wrong = "has no answer here, and found"
    elif poor.rank:
        wrong = f"found its passage at {poor.rank} of"
    else:
        wrong = "missed its passage; found"
    found = " | ".join(poor.headings) or "nothing"
    marked = f" ({poor.wrong_markers} wrong citations)" if poor.wrong_markers else ""
    return f"· {poor.question.question} {wrong}: {found}{marked}"


def _plain(report: Report) -> dict[str, Any]:
    """The report for programs."""
    return {
        "all": _numbers(report.all),
        "by_language": {name: _numbers(scores) for name, scores in report.by_language.items()},
        "worst": [
            {**asdict(poor), "question": poor.question.model_dump()} for poor in report.worst
        ],
    }


def _numbers(scores: Scores) -> dict[str, float | int | None]:
    return {
        "questions": scores.asked,
        **{f"recall_at_{k}": scores.recall(k) for k in scores.found_at},
        "mrr": scores.mrr,
        "markers": scores.markers,
        "citation_precision": scores.citation_precision,
        "outside": scores.outside,
        "refusal_rate": scores.refusal_rate,
    }
