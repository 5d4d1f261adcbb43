"""Getting to know an OpenAI-compatible server, and keeping its key."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuserver import observability
from gpuserver.config import Settings
from gpuserver.errors import (
    EngineFailed,
    GpuServerError,
    ProviderUnavailable,
)
from gpuserver.providers import Place, Request
from gpuserver.providers.openai import OpenAILLM
from tests.chat_server import (
    Answer,
    ChatServer,
    listing,
    refusal,
)
from tests.openai.runtime import (
    ASKED,
    KEY,
    REQUEST,
    Use,
    ask,
    text,
)

# Getting to know a server


@pytest.mark.parametrize(
    ("said", "words_of_it"),
    [
        (refusal(401), ["LLM_API_KEY"]),
        (refusal(403), ["LLM_API_KEY"]),
        (refusal(404), ["LLM_BASE_URL", "404", "/v1"]),
        (refusal(308, Location="https://elsewhere.example/v1"), ["LLM_BASE_URL", "308"]),
        (Answer([b"<html>"]), ["LLM_BASE_URL", "OpenAI-compatible"]),
        (Answer([b'{"data": 3}']), ["LLM_BASE_URL", "OpenAI-compatible"]),
        (Answer([b" " * 70_000] * 70), ["LLM_BASE_URL", "OpenAI-compatible"]),
        (listing("other", "third"), ["LLM_MODEL", "'tiny'", "other, third"]),
        (listing(), ["LLM_MODEL", "none"]),
    ],
)
async def test_a_wrong_server_stops_the_start_with_the_fix(
    server: ChatServer, use: Use, said: Answer, words_of_it: list[str]
) -> None:
    server.models = said
    with pytest.raises(ProviderUnavailable) as failure:
        async with use(llm_api_key=KEY):
            pass
    for word in words_of_it:
        assert word in str(failure.value)
    assert KEY not in str(failure.value)


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"llm_base_url": ""}, "LLM_BASE_URL"),
        ({"llm_base_url": "http://127.0.0.1:99999/v1"}, "LLM_BASE_URL"),
        ({"llm_api_key": "sk-\nvery-secret"}, "LLM_API_KEY"),
        ({"llm_api_key": "sk-秘密"}, "LLM_API_KEY"),
    ],
)
async def test_wrong_settings_stop_the_start_with_the_fix(
    use: Use, given: dict[str, str], fix: str
) -> None:
    with pytest.raises(ProviderUnavailable, match=fix) as failure:
        async with use(**given):
            pass
    assert "secret" not in str(failure.value)
    assert "秘密" not in str(failure.value)


@pytest.mark.slow
async def test_a_server_that_comes_later_is_used_as_soon_as_it_is_there(
    make_settings: Callable[..., Settings],
) -> None:
    server = ChatServer(models=listing("first", "second"))
    async with server.on():
        pass
    settings = make_settings(llm_base_url=server.url)
    llm = OpenAILLM("", Place(settings.data_dir, settings))
    await asyncio.to_thread(llm.load)
    assert llm.status().state == "restarting"
    with pytest.raises(EngineFailed):
        await ask(llm)
    async with server.on():
        await asyncio.sleep(1.05)
        assert text(await ask(llm)) == "Hello."
        assert server.questions[0].body["model"] == "first"
        assert llm.status().state == "ready"
        await asyncio.to_thread(llm.close)


@pytest.mark.parametrize(
    ("model", "listed", "used"),
    [("", ("one", "two"), "one"), ("two", ("one", "two"), "two"), ("q", ("q:latest",), "q:latest")],
)
async def test_the_model_is_the_one_named_or_the_first(
    server: ChatServer, use: Use, model: str, listed: tuple[str, ...], used: str
) -> None:
    server.models = listing(*listed)
    async with use(model) as llm:
        await ask(llm)
    assert server.questions[0].body["model"] == used


async def test_an_adapter_is_used_where_the_server_has_it(server: ChatServer, use: Use) -> None:
    server.models = listing("tiny", "ada")
    async with use(adapters=("/adapters/ada", "/adapters/bo")) as llm:
        for adapter in ("/adapters/ada", "/adapters/bo", ""):
            await ask(llm, replace(REQUEST, adapter=adapter))
    assert [x.body["model"] for x in server.questions] == ["ada", "tiny", "tiny"]


async def test_the_warm_up_asks_for_no_token(server: ChatServer, use: Use) -> None:
    async with use() as llm:
        assert await ask(llm, Request((), "Hello.", (), "en")) == []
    assert not server.questions


# Secrets


async def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    server: ChatServer, use: Use, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    about = ["-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    where = ["-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, make + about + where, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    async with ChatServer(tls=tls).on() as safe:
        with pytest.raises(ProviderUnavailable, match="certificate"):
            async with use(llm_base_url=safe.url, llm_api_key=KEY):
                pass
        assert not safe.listings, "the key is not sent"


async def test_no_proxy_of_the_environment_gets_the_questions(
    server: ChatServer, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ChatServer().on() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with use() as llm:
            assert text(await ask(llm)) == "Hello."
        assert proxy.connections == 0


async def test_neither_the_key_nor_a_word_of_a_pupil_gets_anywhere(
    server: ChatServer,
    use: Use,
    capfd: pytest.CaptureFixture[str],
    make_settings: Callable[..., Settings],
) -> None:
    observability.configure("DEBUG", "json")
    echo = {"message": f"key {KEY} asked {ASKED.content}", "type": "no_entry", "code": KEY}
    said: list[Any] = []
    async with use(llm_api_key=KEY) as llm:
        for script in (refusal(401, echo), refusal(500, echo), Answer([b"data: " + KEY.encode()])):
            server.scripts.append(script)
            with pytest.raises(GpuServerError) as failure:
                await ask(llm)
            said += [failure.value, failure.value.__cause__, failure.value.details]
            logging.getLogger("test").error("shown", exc_info=failure.value)
        said += [llm, llm.status(), make_settings(llm_api_key=KEY)]
    log = capfd.readouterr().err
    assert "LLM_API_KEY is refused" in log
    assert "no_entry" in log
    for line in [log, *map(repr, said), *map(str, said)]:
        assert KEY not in line
        assert ASKED.content not in line
