"""A running product with course material of its own, and a student who asks it in writing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuserver.client import Conversation, Management, converse
from gpuserver.providers import Passage
from gpuserver.tutor.evaluation import Reply
from tests.conftest import Running, running_server

TUTORS = """
tutors:
  - {id: 1, name: Ada}
  - {id: 2, name: 林老师, language: zh}
"""
TUTOR = {"en": 1, "zh": 2}


@contextmanager
def bare_server(folder: Path, **environment: str) -> Iterator[Running]:
    """The product with its real engines, and two tutors who know no course."""
    tutors = folder / "tutors.yaml"
    tutors.write_text(TUTORS, encoding="utf-8")
    with running_server(folder, TUTORS_FILE=str(tutors), **environment) as running:
        yield running


async def put_in(management: Management, kb_id: str, name: str, content: bytes) -> str:
    """Upload a document into a new knowledge base and wait until it answers; gives its id."""
    await management.create_knowledge_base(kb_id)
    await management.add_document(kb_id, name, content)
    [document] = await management.indexed(kb_id)
    assert document["state"] == "ready", document
    document_id: str = document["id"]
    return document_id


async def answers(
    management: Management, questions: Sequence[str], kb_id: str | None, tutor_id: int = 1
) -> list[list[dict[str, Any]]]:
    """All that comes for each of these questions, asked one after another in one new session."""
    ticket = await management.create_session(tutor_id, kb_id=kb_id)
    turns = []
    async with converse(ticket) as conversation:
        await _ready(conversation)
        for question in questions:
            await conversation.text(question)
            turns.append(await conversation.turn())
    await management.delete_session(ticket.session_id)
    return turns


async def _ready(conversation: Conversation) -> None:
    await conversation.until("session.ready")
    await conversation.update(output={"audio": False, "visemes": False})
    await conversation.until("session.updated")


def reply(messages: Sequence[dict[str, Any]]) -> Reply:
    """What the student got of one answer."""
    assert messages[-1]["status"] == "completed", messages[-1]
    told = [message for message in messages if message["type"] == "sources"]
    text = "".join(m["content"] for m in messages if m["type"] == "text.delta")
    found, near = (
        [_passage(source) for message in told for source in message[key]]
        for key in ("passages", "near")
    )
    return Reply(found, text, near)


def _passage(source: dict[str, Any]) -> Passage:
    return Passage(
        id=source["url"],
        kb_id=source["kb_id"],
        document=source["document"],
        heading=source["heading"],
        text=source["quote"],
        language="en",
        page=source["page"],
        similarity=source["score"],
        document_id=source["document_id"],
        n=source["passage"],
    )
