"""What one knowledge base holds never reaches a student of another."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from gpuserver.client import Management
from tests.conftest import Running, local_http
from tests.real_course import answers, bare_server, put_in, reply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

THINGS: Final = (
    *("lantern", "anchor", "bicycle", "violin", "kettle", "ladder", "telescope", "hammer"),
    *("blanket", "compass", "mirror", "whistle", "teapot", "basket", "wagon", "saddle"),
    *("trumpet", "candle", "bucket", "curtain", "pillow", "shovel", "drum", "bell"),
    *("statue", "cupboard", "parrot", "tortoise", "donkey", "fountain", "orchard", "windmill"),
    *("chapel", "bridge", "harbour", "meadow", "lighthouse", "carousel", "greenhouse"),
    *("observatory", "locomotive", "submarine", "balloon", "tractor", "piano", "bookshelf"),
    *("staircase", "waterwheel", "chimney", "scarecrow"),
)
WORDS: Final = 50
KEY: Final = "a-school-of-many-lanterns"
OTHER: Final = "# Weather\n\nRain falls from clouds. A storm brings wind and rain to the coast.\n"


def _canaries() -> list[str]:
    """Words that nobody says, the same ones every time."""
    chance = random.Random(50)
    sounds = [
        "".join(chance.choices("bdfgklmnprstvz") + chance.choices("aeiou")) for _ in range(99)
    ]
    return ["".join(chance.sample(sounds, 5)) + "x" for _ in range(WORDS)]


CANARIES: Final = _canaries()
SENTENCES: Final = [
    f"The {thing} of our school is called {canary}.\n\n"
    for thing, canary in zip(THINGS, CANARIES, strict=True)
]
QUESTIONS: Final = [f"What is the {thing} of our school called?" for thing in THINGS]
BY_NAME: Final = [f"Search the knowledge base alpha for the {thing}." for thing in THINGS[:10]] + [
    f"在知识库 alpha 里查一下 {thing}" for thing in THINGS[10:15]
]


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server that logs all it can, and its data; `alpha` holds the canaries, `beta` the rain."""
    folder = tmp_path_factory.mktemp("school")
    with bare_server(folder, LOG_LEVEL="DEBUG", MANAGEMENT_API_KEY=KEY) as running:
        asyncio.run(_fill(running.url))
        yield running, folder / "data"


async def _fill(url: str) -> None:
    async with Management(url, KEY) as management:
        await put_in(management, "alpha", "names.txt", "".join(SENTENCES).encode())
        await put_in(management, "beta", "weather.md", OTHER.encode())


def _told(text: str) -> list[str]:
    return [canary for canary in CANARIES if canary in text.lower()]


def _files(data: Path) -> Iterable[tuple[Path, str]]:
    for path in data.rglob("*"):
        if path.is_file():
            yield path.relative_to(data), path.read_bytes().decode("utf-8", "replace")


def _written(turns: Sequence[Sequence[dict[str, Any]]]) -> str:
    return json.dumps(turns, ensure_ascii=False, default=repr)


async def test_only_its_own_students_are_told(school: tuple[Running, Path]) -> None:
    running, data = school
    async with Management(running.url, KEY) as management:
        # First who may: nothing that this leaves behind may serve the others.
        own = [reply(turn) for turn in await answers(management, QUESTIONS, "alpha")]
        found = [one for one, got in zip(CANARIES, own, strict=True) if one in got.answer]
        assert len(found) >= 45
        link = own[0].passages[0].id
        assert _told((await management.get(link)).text)

        for kb_id in ("beta", None, "nowhere"):
            turns = await answers(management, [*QUESTIONS, *BY_NAME], kb_id)
            assert len(turns) == len(QUESTIONS) + len(BY_NAME)
            assert _told(_written(turns)) == []
            passages = [passage for turn in turns for passage in reply(turn).passages]
            assert {passage.kb_id for passage in passages} <= {kb_id}

        ticket = await management.create_session(kb_id="beta")
        for path in (link, f"{link}?session_id={ticket.session_id}"):
            refused = await _as_student(running.url, path, ticket.engine_token)
            assert refused.status_code in {401, 403, 404}
            assert _told(refused.text) == []
        for path in ("/metrics", "/v1/knowledge-bases/beta", "/v1/sessions", "/health"):
            assert _told((await management.get(path)).text) == []
        other = await management.get("/v1/knowledge-bases/beta/export")
        assert _told(other.content.decode("utf-8", "replace")) == []

    assert _told(await asyncio.to_thread(running.log.read_text)) == []
    kept = await asyncio.to_thread(lambda: list(_files(data)))
    places = {path.parts[:2] for path, text in kept if _told(text)}
    rooms = Counter(place[0].removesuffix("-wal") for place in places)
    # Its own folder, what recognises its words by ear, and what its own student was told.
    assert rooms["knowledge"] == 1
    assert rooms["vocabulary"] <= 1
    assert rooms.keys() <= {"knowledge", "vocabulary", "sessions.db"}


async def _as_student(url: str, path: str, token: str) -> httpx2.Response:
    async with local_http(url) as client:
        return await client.get(path, headers={"Authorization": f"Bearer {token}"})
