"""Settings: where they come from, what is warned about, what stops the start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpuserver import config
from gpuserver.errors import ConfigurationError


def load(env_file: Path | None = None, **given: Any) -> config.Settings:
    return config.load(env_file, **given)[0]


def test_the_environment_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = tmp_path / ".env"
    env.write_text("MAX_SESSIONS=3\nSESSION_TIMEOUT_SECONDS=60\n")
    monkeypatch.setenv("MAX_SESSIONS", "4")
    settings = load(env)
    assert settings.max_sessions == 4
    assert settings.session_timeout_seconds == 60


def test_an_empty_value_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_SESSIONS", "")
    assert load().max_sessions == 10


def test_old_files_keep_working_with_a_warning(tmp_path: Path) -> None:
    env = tmp_path / ".env"
    env.write_text(
        "WEBSOCKET_HOST=0.0.0.0\nWEBSOCKET_PORT=9001\nCUDA_VISIBLE_DEVICES=0\n"
        "TUTOR_7_LLM_MODEL=qwen\nMAX_SESSION=5\nFROBNICATE=1\n"
    )
    settings, warnings = config.load(env)
    assert settings.tutor_overrides == {7: {"llm_model": "qwen"}}
    assert len(warnings) == 4
    assert "WEBSOCKET_HOST is no longer used" in warnings[0]
    assert "did you mean MAX_SESSIONS?" in warnings[2]
    assert warnings[3] == "FROBNICATE in .env is not a setting of gpuserver and is ignored."


def test_the_environment_warns_of_near_misses_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_SESSIONZ", "5")
    monkeypatch.setenv("UNRELATED_PROGRAM", "1")
    warnings = config.load(None)[1]
    assert [w for w in warnings if "MAX_SESSIONZ" in w]
    assert not [w for w in warnings if "UNRELATED" in w]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_SESSIONS", "many"),
        ("MAX_SESSIONS", "0"),
        ("MAX_SESSIONS", "-1"),
        ("SESSION_TIMEOUT_SECONDS", "nan"),
        ("SESSION_TIMEOUT_SECONDS", "inf"),
        ("MANAGEMENT_API_PORT", "70000"),
        ("WEBSOCKET_URL", "http://wrong"),
        ("WEBSOCKET_URL", "wss://"),
        ("UNKNOWN_TUTOR", "maybe"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_setting(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as problem:
        load()
    assert name in str(problem.value)
    assert "Fix:" in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "public",
    [
        {"management_api_host": "0.0.0.0"},
        {"management_api_host": "::"},
        {"management_api_host": "192.168.1.5"},
        {"websocket_url": "wss://tutor.example"},
        {"websocket_url": "ws://203.0.113.9:19000"},
    ],
)
def test_a_public_server_needs_a_key(public: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="MANAGEMENT_API_KEY"):
        load(**public)
    assert load(**public, management_api_key="k").is_public
    assert load(**public, allow_open_management=True).is_public


def test_loopback_needs_no_key() -> None:
    cases: list[dict[str, Any]] = [
        {},
        {"websocket_url": "ws://localhost:9000"},
        {"management_api_host": "::1"},
    ]
    for public in cases:
        assert not load(**public).is_public


def test_the_example_file_loads_as_it_is(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / ".env.example"
    uncommented = tmp_path / ".env"
    lines = example.read_text(encoding="utf-8").splitlines()
    uncommented.write_text(
        "\n".join(x[1:] for x in lines if x.startswith("#") and not x.startswith("# ")),
        encoding="utf-8",
    )
    settings, warnings = config.load(uncommented)
    assert settings == load()
    assert warnings == []


def test_what_an_operator_has_set_for_a_library_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_LIBRARY_LEVEL", "DEBUG")
    monkeypatch.setenv("SOME_LIBRARY_HOST", "")  # so that it is taken back afterwards
    monkeypatch.delenv("SOME_LIBRARY_HOST")
    config.set_for_libraries({"SOME_LIBRARY_LEVEL": "ERROR", "SOME_LIBRARY_HOST": "127.0.0.1"})
    assert os.environ["SOME_LIBRARY_LEVEL"] == "DEBUG"
    assert os.environ["SOME_LIBRARY_HOST"] == "127.0.0.1"
