"""A scripted OpenAI-compatible server, and the provider that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from gpuserver.config import Settings
from tests.chat_server import ChatServer
from tests.openai.runtime import Notes, Use, using


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer().on() as server:
        yield server
    assert not server.scripts, "scripts are left over"


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def use(server: ChatServer, make_settings: Callable[..., Settings], notes: Notes) -> Use:
    return using(server, make_settings, notes)
