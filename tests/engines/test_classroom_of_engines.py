"""The whole product on its large engines: a class at once, a killed engine, an orderly end.

The models are tiny and say the same to every question, so that an answer, a voice or a transcript
that reached the wrong student can't be missed; what a persona does to an answer they don't show.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from TTS.config import load_config
from TTS.tts.models.vits import Vits

from gpuserver.audio import SAMPLE_RATE, wav
from gpuserver.client import Conversation, Management, converse
from gpuserver.errors import EngineBusy, EngineFailed
from gpuserver.providers import Place
from gpuserver.providers.espeak import EspeakTTS
from tests.bystander import said, samples
from tests.engines import tiny_coqui
from tests.engines.school import (
    ADA,
    BO,
    LONG,
    WORDS,
    School,
    exit_status,
    gpuserver,
    school,
    still_running,
)
from tests.engines.tiny_whisper import SENTENCES, spoken

STUDENTS: Final = 32
SAYS: Final = {
    tutor: " ".join([word] * words)
    for tutor, word, words in ((ADA, "Ada", WORDS), (BO, "Bo", WORDS), (LONG, "Ada", 3000))
}
SPEAKER: Final = {ADA: "ada", BO: "bo"}
ENGLISH: Final = [sentence for language, sentence in SENTENCES if language == "en"]
DEADLINE: Final = 180.0
SOON: Final = 1.0
Message = dict[str, Any]


@pytest.fixture(scope="module")
def house(
    tmp_path_factory: pytest.TempPathFactory, chat_model: Path, adapters: Mapping[str, Path]
) -> Iterator[School]:
    """One server for all tests of this file; the last of them ends it."""
    folder = tmp_path_factory.mktemp("school")
    with school(folder, chat_model, adapters, tiny_coqui.vits()) as running:
        yield running


# A class


@dataclass(frozen=True)
class Pupil:
    """One student of the class and the whole of their turn; `said` is what they said aloud."""

    tutor: int
    said: str
    turn: Sequence[Message]


@pytest.fixture(scope="module")
def recordings() -> Mapping[str, bytes]:
    """What the recogniser knows in English, said by espeak, as WAV."""
    voice = EspeakTTS("", Place(Path()))
    voice.load()
    try:
        said = {x: asyncio.run(spoken(voice, x, "en")).samples for x in ENGLISH}
        return {x: wav(samples.tobytes(), SAMPLE_RATE) for x, samples in said.items()}
    finally:
        voice.close()


@pytest.fixture(scope="module")
def lesson(house: School, recordings: Mapping[str, bytes]) -> Sequence[Pupil]:
    """Two tutors, their students in turn; the first six ask aloud, each something else."""

    async def ask(student: Conversation, number: int) -> Pupil:
        aloud = ENGLISH[number] if number < len(ENGLISH) else ""
        if aloud:
            await student.audio(recordings[aloud])
        else:
            await student.text(house.question())
        return Pupil((ADA, BO)[number % 2], aloud, await student.turn())

    async def attend() -> Sequence[Pupil]:
        async with AsyncExitStack() as room, asyncio.timeout(DEADLINE):
            management = await room.enter_async_context(house.management())
            students = [
                await enter(room, house, management, (ADA, BO)[number % 2])
                for number in range(STUDENTS)
            ]
            return await asyncio.gather(*map(ask, students, range(STUDENTS)))

    return asyncio.run(attend())


async def enter(
    room: AsyncExitStack, house: School, management: Management, tutor: int
) -> Conversation:
    """A new student of a tutor, greeted."""
    ticket = await house.enrol(management, tutor)
    student = await room.enter_async_context(converse(ticket))
    ready = await student.receive()
    assert ready["tutor"]["id"] == tutor
    return student


def test_every_student_is_answered_by_their_own_tutor_alone(lesson: Sequence[Pupil]) -> None:
    assert len(lesson) == STUDENTS
    for pupil in lesson:
        assert [m["content"] for m in pupil.turn if m["type"] == "text"] == [SAYS[pupil.tutor]]
        assert said(list(pupil.turn)) == SAYS[pupil.tutor]
        assert pupil.turn[-1]["status"] == "completed"
        assert "error" not in {m["type"] for m in pupil.turn}
        assert {m["code"] for m in pupil.turn if m["type"] == "notice"} <= {"not_from_course"}


def test_every_student_hears_the_voice_of_their_own_tutor(lesson: Sequence[Pupil]) -> None:
    # A speaker of this model has its own pace: the library itself tells how long it takes for a
    # text, to the sample, and the other speaker takes another time for it.
    own = {tutor: vits_samples(SAYS[tutor], SPEAKER[tutor]) for tutor in (ADA, BO)}
    assert own[ADA] != vits_samples(SAYS[ADA], SPEAKER[BO])
    assert own[BO] != vits_samples(SAYS[BO], SPEAKER[ADA])
    for pupil in lesson:
        assert samples(list(pupil.turn)) == own[pupil.tutor]
        assert any(any(m["pcm"]) for m in pupil.turn if m["type"] == "audio.delta")
        words = [word["text"] for m in pupil.turn if m["type"] == "visemes" for word in m["words"]]
        assert words == SAYS[pupil.tutor].split()


def vits_samples(text: str, speaker: str) -> int:
    """How long the voice is in saying a text, by Coqui alone."""
    folder = tiny_coqui.vits()
    config = load_config(folder / "config.json")
    model = Vits(config)
    model.load_checkpoint(config, folder / "model.pth", eval=True)
    return len(model.synthesize(text.strip(), speaker=speaker, language=None)["wav"])


def test_who_asks_aloud_is_understood(lesson: Sequence[Pupil]) -> None:
    heard = [[m["content"] for m in p.turn if m["type"] == "transcription"] for p in lesson]
    assert heard == [[pupil.said] if pupil.said else [] for pupil in lesson]


async def test_both_tutors_share_one_loaded_model(house: School, lesson: Sequence[Pupil]) -> None:
    async with house.management() as management:
        models = (await management.get("/mgmt/v1/models")).json()["models"]
    found = {row["kind"]: row for row in models}
    assert len(found) == len(models)
    large = {kind: found[kind]["provider"] for kind in ("llm", "asr", "tts", "embeddings")}
    assert large == {
        "llm": "vllm",
        "asr": "faster-whisper",
        "tts": "coqui",
        "embeddings": "sentence-transformers",
    }
    assert {row["state"] for row in models} == {"ready"}
    for kind in ("llm", "asr", "tts"):
        assert {tutor["id"] for tutor in found[kind]["tutors"]} >= {ADA, BO}
    assert [name.split("-")[1] for name in found["llm"]["adapters"]] == ["ada", "bo"]


async def test_the_model_answers_many_of_them_together(
    house: School, lesson: Sequence[Pupil]
) -> None:
    async with house.management() as management:
        page = (await management.get("/metrics")).text
    alone, of_all = (
        float(next(x for x in page.splitlines() if re.search(series, x)).split()[-1])
        for series in (
            r'batch_size_bucket\{le="1.0",runtime="vllm',
            r'batch_size_count\{runtime="vllm',
        )
    )
    assert of_all - alone > STUDENTS / 2


async def test_the_command_line_shows_it(house: School, lesson: Sequence[Pupil]) -> None:
    shown = await asyncio.gather(
        *(asyncio.to_thread(house.command, *words) for words in (("status",), ("models", "list")))
    )
    for done in shown:
        assert done.returncode == 0, done.stderr
        row = next(line for line in done.stdout.splitlines() if "llm:vllm:" in line)
        assert "ready" in row
        assert "1 Curie" in row
        assert "2 Darwin" in done.stdout
        assert "faster-whisper" in done.stdout


# A death


async def test_a_killed_engine_is_told_of_and_comes_back(house: School) -> None:
    async with (
        AsyncExitStack() as room,
        asyncio.timeout(DEADLINE),
        house.management() as management,
    ):
        students = [await enter(room, house, management, LONG) for _ in range(4)]
        for student in students:
            await student.update(output={"audio": False})
            await student.text(house.question())
        for student in students:
            await student.until("text.delta")
        house.engine().kill()
        ends = await asyncio.gather(*(student.turn() for student in students))
        # The engine's own library may tell the students before the server has seen it.
        while (ready := await management.get("/ready")).status_code == 200:
            await asyncio.sleep(0.05)
        await students[0].text(house.question())
        busy = error_of(await students[0].turn())
        sessions = (await management.get("/v1/sessions")).json()["sessions"]
        again = await asyncio.gather(*(ask_until_answered(house, student) for student in students))
        while (await management.get("/ready")).status_code != 200:
            await asyncio.sleep(0.1)
    for turn in ends:
        error = error_of(turn)
        assert (error["code"], error["retryable"]) == ("engine_failed", True)
        assert error["content"] == EngineFailed(engine="llm").sentence("en")
        # Its first word has been taken before.
        assert SAYS[LONG].startswith(said(turn).lstrip())
        assert "text" not in {m["type"] for m in turn}
    assert ready.status_code == 503
    assert ready.json()["stage"] == "llm"
    assert ready.json()["reason"] == "The vllm engine is being started again."
    assert busy["code"] == "engine_busy"
    assert busy["content"] == EngineBusy(seconds=busy["retry_after"]).sentence("en")
    assert [s["status"] for s in sessions if s["tutor_id"] == LONG] == ["active"] * len(students)
    assert set(again) == {"Ada"}


def error_of(turn: Sequence[Message]) -> Message:
    """The one error of a turn that failed."""
    assert turn[-1]["status"] == "failed"
    (error,) = (m for m in turn if m["type"] == "error")
    return error


async def ask_until_answered(house: School, student: Conversation) -> str:
    """Ask again, sooner than the server says, till it answers; the first words of that."""
    while True:
        await student.text(house.question())
        found = await student.until("text.delta", "error")
        if found["type"] == "text.delta":
            await student.interrupt()
            await student.until("turn.done")
            return str(found["content"])
        assert found["code"] == "engine_busy"
        await asyncio.sleep(min(found["retry_after"], SOON))


# The end


async def test_the_end_leaves_no_process_and_no_word_in_the_log(
    house: School, lesson: Sequence[Pupil]
) -> None:
    async with AsyncExitStack() as room, house.management() as management:
        student = await enter(room, house, management, LONG)
        await student.text(house.question())
        await student.until("audio.delta")
        before = house.processes()
        assert house.engine() in before
        os.kill(house.running.pid, signal.SIGTERM)
        async with asyncio.timeout(30):
            assert (await student.until("session.ending"))["reason"] == "shutdown"
    assert await asyncio.to_thread(still_running, before) == []
    assert exit_status(house.running.pid) in {0, signal.SIGTERM}
    log = house.logs()
    assert "Traceback" not in log
    assert [x for x in (*house.private, *ENGLISH, "Ada Ada", "Bo Bo") if x in log] == []


# Where it can't be


def test_the_profile_for_gpus_is_refused_in_one_sentence_without_one(tmp_path: Path) -> None:
    done = gpuserver("serve", PROFILE="gpu", DATA_DIR=str(tmp_path), CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"gpuserver: PROFILE=gpu needs an NVIDIA GPU.* Fix: .*\n", done.stderr)
