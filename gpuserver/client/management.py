"""The management API of a server: sessions and their tickets."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx2


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
