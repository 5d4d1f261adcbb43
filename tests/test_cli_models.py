"""`gpuserver status` and `gpuserver models` with a running server, one that fails, and none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuserver.cli import models
from gpuserver.errors import ProviderUnavailable
from tests.commands import NOBODY, run
from tests.conftest import Serve
from tests.file_server import FileServer, serving


async def test_status_shows_the_models_and_who_uses_them(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve(max_sessions=7) as server:
        assert await run(lambda: models.status(url=server.url)) == 0
    said = capsys.readouterr().out
    assert "ready" in said
    assert "sessions 0/7" in said
    assert "1 Ada" in said
    assert "llm:extractive:" in said


async def test_the_key_is_needed_and_its_lack_explained(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve(management_api_key="right") as server:
        assert await run(lambda: models.status(url=server.url, key="wrong")) == 1
        assert "needs the management key" in capsys.readouterr().err
        assert await run(lambda: models.status(url=server.url, key="right")) == 0


async def test_a_model_is_pinned_freed_again_and_not_unloaded_under_a_tutor(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve() as server:
        wished = "tts:espeak:"
        assert await run(lambda: models.pin(wished, url=server.url)) == 0
        assert "stays loaded" in capsys.readouterr().out
        assert await run(lambda: models.pin(wished, off=True, url=server.url)) == 0
        assert await run(lambda: models.unload(wished, url=server.url)) == 1
        assert "in use by Ada" in capsys.readouterr().err


async def test_load_says_what_it_did_and_why_not(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve() as server:
        assert await run(lambda: models.load("tts", "espeak", url=server.url)) == 0
        assert "Loaded: tts:espeak:" in capsys.readouterr().out
        assert await run(lambda: models.load("llm", "vllm", "no/such", url=server.url)) == 1
        assert "no/such" in capsys.readouterr().err
        assert await run(lambda: models.fit("opera", "x", url=server.url)) == 1
        assert "Input should be 'llm'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"error": {"code": "provider_unavailable", "detail": "There is no room."}}, "no room."),
        ({"stage": "loading", "share": 0.5}, "stopped before the model was loaded"),
        ([1], "not this version of gpuserver"),
    ],
)
async def test_a_load_that_fails_on_the_way_is_one_sentence(
    last: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"stage": "fetching", "share": None}, {"stage": "loading", "share": 0.5}, last]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with serving(FileServer({"/mgmt/v1/models/load": text.encode()})) as files:
        assert await run(lambda: models.load("llm", "vllm", url=files.url)) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.index("… fetching") < shown.index("… loading") < shown.index(said)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", None])
async def test_another_program_on_the_port_is_one_sentence(
    answer: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(FileServer({"/status": answer} if answer else {})) as files:
        assert await run(lambda: models.status(url=files.url)) == 1
    assert "gpuserver: " in capsys.readouterr().err


async def test_without_a_server_the_pulled_models_are_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))
    (tmp_path / "models/Qwen--Qwen3-8B").mkdir(parents=True)
    (tmp_path / "models/Qwen--Qwen3-8B/model.safetensors").write_bytes(b"x" * 2000)
    assert await run(lambda: models.list_models(url=NOBODY)) == 0
    shown = capsys.readouterr()
    assert "No server answers" in shown.err
    assert "Qwen/Qwen3-8B" in shown.out
    assert "2 kB" in shown.out
    assert await run(lambda: models.status(url=NOBODY)) == 1


def test_pull_says_which_environment_has_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))
    with pytest.raises(ProviderUnavailable, match="PROFILE=cpu or PROFILE=gpu"):
        models.pull("Qwen/Qwen3-8B")
    assert not (tmp_path / "models").exists()
