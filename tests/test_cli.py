"""The command line and the server process, used as people use them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest

from gpuserver.audio import wav
from gpuserver.connectivity import spoken_question
from tests.conftest import Running, running_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, so that the course is indexed once."""
    return tmp_path_factory.mktemp("data")


def run(
    *arguments: str, data_dir: Path, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpuserver", *arguments],
        env={**os.environ, "DATA_DIR": str(data_dir), "COLUMNS": "200", **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def workers_of(pid: int) -> list[int]:
    """A process belongs to the thread that started it."""
    listings = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for listing in listings for child in listing.read_text().split()]
    assert len(children) >= 2
    return children


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_ask_answers_from_the_course_with_its_sources(data_dir: Path) -> None:
    asked = run("ask", "What is a list?", data_dir=data_dir)
    assert asked.returncode == 0, asked.stderr
    assert "list" in asked.stdout
    assert "[1] Collections of data: Lists" in asked.stdout
    assert "warm-up" in asked.stderr


def test_ask_in_chinese(data_dir: Path) -> None:
    asked = run("ask", "什么是列表？", data_dir=data_dir)
    assert "列表" in asked.stdout.splitlines()[0]


def test_ask_a_recording_and_save_the_spoken_answer(data_dir: Path, tmp_path: Path) -> None:
    question, answer = tmp_path / "q.ogg", tmp_path / "a.wav"
    question.write_bytes(spoken_question())
    asked = run("ask", "--audio", str(question), "--out", str(answer), data_dir=data_dir)
    assert asked.returncode == 0, asked.stderr
    assert "(heard: what is a list)" in asked.stdout
    with wave.open(str(answer)) as speech:
        assert speech.getnframes() / speech.getframerate() > 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask"], "give either a question or --audio"),
        (["ask", "x", "--audio", "y"], "give either a question or --audio"),
        (["ask", "--audio", "/nowhere.wav"], "Can't read /nowhere.wav"),
        (["ask", " "], "The question is empty"),
        (["chat", "--voice", "/nowhere.wav"], "Can't read /nowhere.wav"),
        (["chat", "--out", "x.wav"], "--out needs --voice"),
        (["chat", "--tutor", "99"], "Tutor 99 not found"),
        (["dance"], "No such command"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], said: str, data_dir: Path) -> None:
    result = run(*arguments, data_dir=data_dir)
    assert result.returncode != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_ask_something_that_is_no_recording(data_dir: Path, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.wav"
    rubbish.write_bytes(b"rubbish" * 100)
    result = run("ask", "--audio", str(rubbish), data_dir=data_dir)
    assert result.returncode == 1
    assert "not audio" in result.stderr
    assert "Traceback" not in result.stderr


def test_chat_remembers(data_dir: Path) -> None:
    talk = run("chat", data_dir=data_dir, stdin="What is a list?\nand how do i write one?\n\n")
    assert talk.returncode == 0, talk.stderr
    assert "[" in talk.stdout.split("Collections of data: Lists", 1)[1]


def test_chat_by_voice_with_a_running_server(
    server: Running, data_dir: Path, tmp_path: Path
) -> None:
    def sessions() -> int:
        return int(httpx2.get(server.url + "/v1/sessions", trust_env=False).json()["total"])

    before = sessions()
    question, answer = tmp_path / "q.ogg", tmp_path / "a.wav"
    question.write_bytes(spoken_question())
    files = ["--voice", str(question), "--out", str(answer)]
    talk = run("chat", *files, "--url", server.url, data_dir=data_dir)
    assert talk.returncode == 0, talk.stderr
    assert "(heard: what is a list)" in talk.stdout
    assert "[1] Collections of data: Lists" in talk.stdout
    strip = talk.stdout.splitlines()[-1]
    assert "end of turn " in strip
    assert "first sound " in strip
    with wave.open(str(answer)) as speech:
        assert speech.getnframes() / speech.getframerate() > 4
    assert sessions() == before


def test_chat_says_that_a_recording_was_no_question(
    server: Running, data_dir: Path, tmp_path: Path
) -> None:
    silent = tmp_path / "silence.wav"
    silent.write_bytes(wav(bytes(32_000), 16_000))
    talk = run("chat", "--voice", str(silent), "--url", server.url, data_dir=data_dir)
    assert talk.returncode == 1
    assert "No question was heard in this recording." in talk.stderr


def test_chat_says_what_to_do_when_nothing_is_there(data_dir: Path) -> None:
    talk = run("chat", "--url", "http://127.0.0.1:9", data_dir=data_dir)
    assert talk.returncode == 2
    assert "Fix: start the server" in talk.stderr
    assert "Traceback" not in talk.stderr


def test_tutors_are_listed(data_dir: Path) -> None:
    listed = run("tutors", data_dir=data_dir)
    assert "Ada" in listed.stdout
    assert "pocketsphinx" in listed.stdout


def test_check_passes_on_a_good_server(server: Running, data_dir: Path) -> None:
    checked = run("check", "--url", server.url, data_dir=data_dir)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("ok  ") == 12
    assert checked.stdout.count("heard 'what is a list'") == 2


def test_check_says_what_to_do_when_nothing_is_there(data_dir: Path) -> None:
    checked = run("check", "--url", "http://127.0.0.1:9", data_dir=data_dir)
    assert checked.returncode == 1
    assert "FAIL" in checked.stdout
    assert "fix: start the server" in checked.stdout


def test_check_says_that_another_program_answers(data_dir: Path) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

    with HTTPServer(("127.0.0.1", 0), Page) as other:
        thread = threading.Thread(target=other.handle_request, daemon=True)
        thread.start()
        checked = run("check", "--url", f"http://127.0.0.1:{other.server_port}", data_dir=data_dir)
        thread.join(5)
    assert checked.returncode == 1
    assert "not gpuserver's" in checked.stdout
    assert "Traceback" not in checked.stderr
    for wrong in ("nonsense", "http://[::1", "http://"):
        checked = run("check", "--url", wrong, data_dir=data_dir)
        assert checked.returncode == 1, wrong
        assert "Traceback" not in checked.stderr


def test_check_says_that_the_key_is_missing(data_dir: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, MANAGEMENT_API_KEY="right", DATA_DIR=str(data_dir)) as running:
        wrong = run("check", "--url", running.url, "--key", "wrong", data_dir=data_dir)
        assert wrong.returncode == 1
        assert "give the management key" in wrong.stdout
        right = run("check", "--url", running.url, "--key", "right", data_dir=data_dir)
        assert right.returncode == 0, right.stdout


@pytest.fixture
def started(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A server started in the background, and stopped whatever happens."""
    environment = {"MANAGEMENT_API_PORT": "0"}
    begun = run("start", data_dir=tmp_path, **environment)
    assert begun.returncode == 0, begun.stderr
    url = next(x for x in begun.stdout.split() if x.startswith("http")).rstrip("/")
    pid, _ = (tmp_path / "gpuserver.pid").read_text().split()
    try:
        yield {"url": url, "pid": pid, "said": begun.stdout}
    finally:
        run("stop", data_dir=tmp_path)


def test_start_and_stop(started: dict[str, str], tmp_path: Path) -> None:
    pid = int(started["pid"])
    workers = workers_of(pid)
    assert httpx2.get(started["url"] + "/ready", trust_env=False).status_code == 200
    assert "tutor 1 Ada: llm extractive, asr pocketsphinx, tts espeak" in started["said"]
    again = run("start", data_dir=tmp_path)
    assert started["url"] in again.stdout
    assert run("stop", data_dir=tmp_path).stdout == f"Stopped (process {pid}).\n"
    deadline = time.monotonic() + 5
    while any(map(alive, [pid, *workers])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [p for p in [pid, *workers] if alive(p)]
    assert run("stop", data_dir=tmp_path).stdout == "No server is running here.\n"


def test_a_killed_server_leaves_no_workers_and_no_lock(
    started: dict[str, str], tmp_path: Path
) -> None:
    pid = int(started["pid"])
    workers = workers_of(pid)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [p for p in workers if alive(p)]
    assert run("stop", data_dir=tmp_path).stdout == "No server is running here.\n"
    again = run("start", data_dir=tmp_path, MANAGEMENT_API_PORT="0")
    assert again.returncode == 0, again.stderr


def test_a_port_in_use_stops_the_start(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for command in ("serve", "start"):
            result = run(command, data_dir=data_dir, MANAGEMENT_API_PORT=port)
            assert result.returncode == 2
            assert f"Can't listen on 127.0.0.1 port {port}" in result.stderr
            assert "Fix:" in result.stderr
            assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"DATA_DIR": "/dev/null/data"}, "can't be written"),
        ({"MAX_SESSIONS": "many"}, "MAX_SESSIONS has a bad value"),
        ({"LLM_PROVIDER": "gpt"}, "no llm provider named 'gpt'"),
        ({"TTS_PROVIDER": "festival"}, "TTS_PROVIDER to one of"),
        ({"TUTORS_FILE": "/nowhere.yaml"}, "can't be read"),
        ({"MANAGEMENT_API_HOST": "0.0.0.0"}, "MANAGEMENT_API_KEY"),
        (
            {"MANAGEMENT_API_HOST": "no.such.host.invalid", "MANAGEMENT_API_KEY": "k"},
            "Can't listen on no.such.host.invalid",
        ),
    ],
)
def test_what_can_not_work_stops_the_start(
    environment: dict[str, str], said: str, data_dir: Path
) -> None:
    settings = {"DATA_DIR": str(data_dir), "MANAGEMENT_API_PORT": "0", **environment}
    folder = Path(settings.pop("DATA_DIR"))
    result = run("serve", data_dir=folder, **settings)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_setting_is_a_warning(server: Running) -> None:
    assert "did you mean MAX_SESSIONS?" in server.log.read_text()
