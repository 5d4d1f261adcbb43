"""`gpuserver models pull` against a hub of our own on the loopback, as an operator runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from faster_whisper.utils import _MODELS
from huggingface_hub import constants

from gpuserver.config import DEFAULTS, Settings
from gpuserver.errors import ProviderUnavailable
from gpuserver.providers import weights
from gpuserver.providers.weights import voice_hub
from gpuserver.providers.weights.hub import WHISPER
from tests.file_server import FileServer, serving
from tests.test_weights import unheard, zipped

NAME = "school/tiny"
TOKEN = "hf_do_not_tell"
WEIGHTS = os.urandom(4 << 20)
MODEL = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same again",
    "tokenizer.json": b'{"a": 1}',
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Where the library of this process, too, looks for models."""
    with serving(FileServer()) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def settings(models: Path) -> Settings:
    return DEFAULTS.model_copy(update={"models_dir": models})


def pulling(hub: FileServer, models: Path, name: str, **more: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    ours = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(models / "../hf")}
    return subprocess.Popen(
        [sys.executable, "-m", "gpuserver", "models", "pull", name],
        env={**kept, **ours, "MODELS_DIR": str(models), "COLUMNS": "400", **more},
        cwd=models.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, such as these tests may be one of, are deaf to Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def refusal(name: str, settings: Settings) -> str:
    with pytest.raises(ProviderUnavailable) as refused:
        weights.pull(name, settings, unheard)
    assert TOKEN not in str(refused.value)
    return str(refused.value)


def nothing_is_taken_for_a_model(models: Path) -> bool:
    return not [path for path in models.glob("*") if not path.name.startswith(".")]


def test_a_model_comes_whole_with_each_weight_once(
    hub: FileServer, models: Path, settings: Settings
) -> None:
    hub.add_repository(NAME, MODEL)
    command = pulling(hub, models, NAME)
    out, said = command.communicate(timeout=60)
    assert command.returncode == 0, said
    assert TOKEN not in out + said
    folder = models / "school--tiny"
    assert str(folder) in out
    assert {path.name for path in folder.iterdir()} == MODEL.keys() - {"pytorch_model.bin"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert list((models / ".pulling").iterdir()) == []
    asked = len(hub.asked)
    assert weights.folder(NAME, settings) == folder
    assert len(hub.asked) == asked


def test_ctrl_c_leaves_what_the_next_pull_goes_on_from(
    hub: FileServer, models: Path, settings: Settings
) -> None:
    hub.add_repository(NAME, MODEL)
    path = next(x for x in hub.files if x.endswith("model.safetensors"))
    hub.hang_after[path] = 3 << 20
    command = pulling(hub, models, NAME)
    part = models / ".pulling/school--tiny/files/model.safetensors.part"
    deadline = time.monotonic() + 50
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "being fetched right now" in refusal(NAME, settings)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=20)
    assert command.returncode == 130
    assert "goes on from here" in said
    assert "Traceback" not in said
    assert nothing_is_taken_for_a_model(models)
    here = part.stat().st_size
    hub.hang_after.clear()
    weights.pull(NAME, settings, unheard)
    assert hub.requests("model.safetensors")[-1].range == f"bytes={here}-"
    assert (models / "school--tiny/model.safetensors").read_bytes() == WEIGHTS


def test_a_command_that_can_not_have_it_says_why(hub: FileServer, models: Path) -> None:
    command = pulling(hub, models, NAME, HF_ENDPOINT="http://127.0.0.1:1")
    _, said = command.communicate(timeout=60)
    assert command.returncode == 2
    assert "The hub can't be reached" in said
    assert "Fix:" in said
    assert "Traceback" not in said
    assert not models.exists()


def test_a_load_that_needs_it_is_told_how_far_it_is(
    hub: FileServer, models: Path, settings: Settings
) -> None:
    hub.add_repository(NAME, MODEL)
    told: list[tuple[str, float | None]] = []
    folder = weights.folder(NAME, settings, lambda stage, share: told.append((stage, share)))
    assert folder == models / "school--tiny"
    shares = [share for _, share in told if share is not None]
    assert {stage for stage, _ in told} == {"fetching"}
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_load_that_is_given_up_stops_the_fetching(
    hub: FileServer, models: Path, settings: Settings
) -> None:
    class GivenUp(Exception):
        pass

    def given_up(stage: str, share: float | None) -> None:
        raise GivenUp

    hub.add_repository(NAME, MODEL)
    with pytest.raises(GivenUp):
        weights.folder(NAME, settings, given_up)
    assert nothing_is_taken_for_a_model(models)


def test_the_token_goes_to_the_hub_and_not_to_where_it_sends_us(
    hub: FileServer, settings: Settings
) -> None:
    hub.add_repository(NAME, MODEL)
    path = next(x for x in hub.files if x.endswith("model.safetensors"))
    with serving(FileServer(files={"/signed": WEIGHTS})) as store:
        hub.moved_to[path] = f"{store.url}/signed"
        weights.pull(NAME, settings, unheard)
        assert [asked.token for asked in store.asked] == [""]
    assert {asked.token for asked in hub.asked} == {f"Bearer {TOKEN}"}


def test_too_little_disk_is_told_before_a_byte_is_fetched(
    hub: FileServer, models: Path, settings: Settings
) -> None:
    hub.add_repository(NAME, MODEL, size=10**15)
    said = refusal(NAME, settings)
    assert "The model needs 3000000.0 GB, and" in said
    assert f"are free in {models}. Fix: free some space, or set MODELS_DIR" in said
    assert not [x for x in hub.asked if "/resolve/" in x.path]
    assert nothing_is_taken_for_a_model(models)


def test_parts_of_an_older_revision_are_thrown_away(
    hub: FileServer, models: Path, settings: Settings
) -> None:
    hub.add_repository(NAME, {**MODEL, "model.safetensors": b"old" * 99})
    hub.status[next(x for x in hub.files if x.endswith("tokenizer.json"))] = 403
    assert "tokenizer.json could not be fetched (the hub answers 403)" in refusal(NAME, settings)
    hub.add_repository(NAME, MODEL)
    weights.pull(NAME, settings, unheard)
    assert (models / "school--tiny/model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("school/none", 404, "no model 'school/none' that may be read from here"),
        (NAME, 500, "The hub answers 500"),
        ("colossal", 200, "no model named 'colossal'"),
    ],
)
def test_what_can_not_be_had_is_one_sentence(
    name: str, status: int, said: str, hub: FileServer, models: Path, settings: Settings
) -> None:
    hub.add_repository(NAME, MODEL)
    hub.status[f"/api/models/{NAME}"] = status
    assert said in refusal(name, settings)
    assert not models.exists()


@pytest.mark.parametrize("page", [b"<html>Log in to the school's network</html>", b"[]", b"{}"])
def test_what_is_no_hub_is_one_sentence(page: bytes, hub: FileServer, settings: Settings) -> None:
    hub.files[f"/api/models/{NAME}"] = page
    assert "no hub" in refusal(NAME, settings)


def test_the_librarys_own_offline_switch_is_named(
    hub: FileServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in refusal(NAME, settings)


def test_a_size_of_whisper_is_its_repository_in_the_format_that_runs(
    hub: FileServer, models: Path, settings: Settings
) -> None:
    files = {"config.json": b"{}", "model.bin": b"w", "vocabulary.txt": b"a", "README.md": b"r"}
    hub.add_repository("Systran/faster-whisper-small", files)
    weights.pull("small", settings, unheard)
    assert {path.name for path in (models / "small").iterdir()} == files.keys() - {"README.md"}
    assert WHISPER == _MODELS


# Voices


@pytest.fixture
def voices(hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library, found instead of Coqui's, whose catalogue leads to the hub of the test."""
    hub.files["/release/vits.zip"] = zipped({"vits/config.json": b"{}", "vits/model.pth": WEIGHTS})
    hub.add_repository("school/xtts", {"model.pth": b"w", "dvae.pth": b"d", "vocab.json": b"{}"})
    entries = {
        "vits": {"github_rls_url": f"{hub.url}/release/vits.zip", "license": "apache 2.0"},
        "xtts": {
            "repo_id": "school/xtts",
            "ignore": ["dvae.pth"],
            "license": "CPML",
            "tos_required": True,
        },
    }
    library = tmp_path / "library" / "TTS"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("raise RuntimeError('imported')")
    catalogue = {"tts_models": {"en": {"school": entries}}}
    (library / ".models.json").write_text(json.dumps(catalogue))
    # Another test may have loaded the real one.
    monkeypatch.delitem(sys.modules, "TTS", raising=False)
    monkeypatch.syspath_prepend(str(library.parent))


@pytest.mark.usefixtures("voices")
def test_a_released_voice_is_fetched_and_unpacked(
    hub: FileServer, models: Path, settings: Settings
) -> None:
    hub.break_off["/release/vits.zip"] = 1 << 20
    weights.pull("tts_models/en/school/vits", settings, unheard)
    folder = models / "tts_models--en--school--vits"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.pth"}
    assert (folder / "model.pth").read_bytes() == WEIGHTS


@pytest.mark.usefixtures("voices")
def test_a_licence_that_asks_for_it_has_to_be_agreed_to(models: Path, settings: Settings) -> None:
    name = "tts_models/en/school/xtts"
    said = refusal(name, settings)
    assert "agree to its licence (CPML)" in said
    assert f"models pull {name} --accept-licence" in said
    weights.pull(name, settings, unheard, accept_licence=True)
    folder = models / "tts_models--en--school--xtts"
    assert {path.name for path in folder.iterdir()} == {"model.pth", "vocab.json"}


@pytest.mark.usefixtures("voices")
def test_a_voice_that_is_in_no_catalogue_is_one_sentence(settings: Settings) -> None:
    said = refusal("tts_models/en/school/none", settings)
    assert "no voice 'tts_models/en/school/none'" in said


def test_the_shipped_catalogue_knows_the_voices_that_the_documents_name() -> None:
    assert voice_hub.entry("tts_models/en/ljspeech/vits")["github_rls_url"].endswith(".zip")
    assert voice_hub.entry("tts_models/multilingual/multi-dataset/xtts_v2")["tos_required"]
