"""The management API of a server: sessions and their tickets, and course material."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx2

_FINISHED: Final = frozenset({"ready", "failed"})
_LOOK_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a browser gets from the school's server."""

    session_id: str
    engine_url: str
    engine_token: str


class Management:
    """The management API of one server. An async context manager."""

    def __init__(self, base_url: str, key: str = "", timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> httpx2.Response:
        """Any path of the server."""
        return await self._http.get(path)

    async def create_session(
        self, tutor_id: int = 1, student_id: int = 1, kb_id: str | None = None
    ) -> Ticket:
        """Raises httpx2.HTTPStatusError with the server's refusal."""
        body = {"tutor_id": tutor_id, "student_id": student_id, "kb_id": kb_id}
        answer = await self._http.post("/v1/sessions", json=body)
        answer.raise_for_status()
        made = answer.json()
        return Ticket(made["session_id"], made["engine_url"], made["engine_token"])

    async def delete_session(self, session_id: str) -> None:
        """Raises httpx2.HTTPStatusError."""
        (await self._http.delete(f"/v1/sessions/{session_id}")).raise_for_status()

    async def create_knowledge_base(self, kb_id: str, title: str = "") -> None:
        """Raises httpx2.HTTPStatusError."""
        body = {"kb_id": kb_id, "title": title}
        (await self._http.post("/v1/knowledge-bases", json=body)).raise_for_status()

    async def delete_knowledge_base(self, kb_id: str) -> None:
        """Raises httpx2.HTTPStatusError."""
        (await self._http.delete(_base(kb_id))).raise_for_status()

    async def add_document(self, kb_id: str, name: str, content: bytes) -> list[dict[str, Any]]:
        """Upload a document, or a zip of them; one of the same name is replaced.

        Returns what the server took, which is indexed afterwards: see `indexed`.
        Raises httpx2.HTTPStatusError.
        """
        answer = await self._http.post(f"{_base(kb_id)}/documents", files={"file": (name, content)})
        answer.raise_for_status()
        taken: list[dict[str, Any]] = answer.json()["documents"]
        return taken

    async def documents(self, kb_id: str) -> list[dict[str, Any]]:
        """The documents of a knowledge base. Raises httpx2.HTTPStatusError."""
        answer = await self._http.get(f"{_base(kb_id)}/documents")
        answer.raise_for_status()
        documents: list[dict[str, Any]] = answer.json()["documents"]
        return documents

    async def indexed(self, kb_id: str) -> list[dict[str, Any]]:
        """The documents, once each is ready or failed. Raises httpx2.HTTPStatusError."""
        while True:
            documents = await self.documents(kb_id)
            if all(document["state"] in _FINISHED for document in documents):
                return documents
            await asyncio.sleep(_LOOK_SECONDS)


def _base(kb_id: str) -> str:
    return f"/v1/knowledge-bases/{quote(kb_id, safe='')}"
