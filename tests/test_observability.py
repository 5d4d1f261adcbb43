"""Logs hold ids, never a token and never a pupil's words, whoever writes them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Literal

import pytest

from gpuserver import observability
from gpuserver.client import converse
from tests.conftest import Serve


@pytest.fixture
def lines() -> Callable[[Literal["console", "json"]], list[str]]:
    """Configures the logs and gives the list that fills with finished lines."""
    kept: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(self.format(record))

    def configure(style: Literal["console", "json"]) -> list[str]:
        observability.configure("DEBUG", style)
        root = logging.getLogger()
        keep = Keep()
        keep.setFormatter(root.handlers[0].formatter)
        root.handlers[:] = [keep]
        return kept

    return configure


@pytest.mark.parametrize(
    "said",
    [
        "GET /ws/ws/1?token=SECRET HTTP/1.1",
        "GET /ws/ws/1?a=b&engine_token=SECRET&c=d",
        "sec-websocket-protocol: tutor.v2, bearer.SECRET",
        "authorization: Bearer SECRET",
        "api_key=SECRET",
    ],
)
def test_secrets_are_blotted_out_of_any_line(said: str) -> None:
    assert "SECRET" not in observability.redact(said)
    assert observability.redact("a list of tokens") == "a list of tokens"


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_traceback_says_where_and_never_what(lines: Callable[..., list[str]], style: str) -> None:
    kept = lines(style)
    local = "my secret diary"  # a value that a traceback with locals would show
    for logger in (logging.getLogger("uvicorn.error"), observability.get_logger("ours")):
        try:
            try:
                raise ValueError(f"can't read {local}")
            except ValueError as cause:
                raise ExceptionGroup("several", [KeyError(local)]) from cause
        except ExceptionGroup:
            logger.exception("failed")
    assert len(kept) == 2
    for line in kept:
        assert "diary" not in line
        assert "ExceptionGroup" in line
        assert "KeyError" in line
        assert "test_observability.py" in line
        if style == "json":
            assert json.loads(line)["event"] == "failed"


@pytest.mark.parametrize("v2", [False, True])
async def test_no_line_of_a_conversation_holds_a_token_or_a_pupils_words(
    serve: Serve, lines: Callable[..., list[str]], v2: bool
) -> None:
    kept = lines("console")
    # At their loudest, these log every URL and every frame.
    logging.getLogger("uvicorn.access").setLevel(logging.DEBUG)
    async with serve() as server, server.management() as management:
        logging.getLogger("uvicorn.error").setLevel(logging.INFO)
        ticket = await management.create_session()
        async with converse(ticket, v2=v2) as socket:
            await socket.receive()
            await socket.text("my secret diary")
            await socket.until("text")
            await socket.send(b"")
        async with converse(ticket, v2=False) as socket:
            await socket.receive()
    assert [line for line in kept if "token=***" in line]
    assert not [line for line in kept if ticket.engine_token in line]
    assert not [line for line in kept if "secret diary" in line]
