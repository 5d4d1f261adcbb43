"""The scripts a person starts with: which environment a profile runs in, and what they refuse."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def bash(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line with install.sh's functions at hand, in a folder with its own `.env`."""
    line = f". {ROOT}/requirements/install.sh; {script}"
    known = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line], cwd=folder, env=known, text=True,
        capture_output=True, check=False, timeout=30,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "profile"),
    [
        ("PROFILE=cpu", "cpu"),
        ("export PROFILE = 'gpu'  # the big machine", "gpu"),
        ("PROFILE=cpu\nPROFILE=gpu", "gpu"),
        ("#PROFILE=cpu", "embedded"),
        ("PROFILE=", "embedded"),
        ("MY_PROFILE=cpu", "embedded"),
    ],
)
def test_the_profile_is_read_as_the_server_reads_it(
    tmp_path: Path, line: str, profile: str
) -> None:
    (tmp_path / ".env").write_text(line + "\n")
    assert bash("profile", tmp_path).stdout == profile


def test_the_environment_beats_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PROFILE=cpu\n")
    assert bash("profile", tmp_path, PROFILE="embedded").stdout == "embedded"


def test_a_profile_that_is_none_is_refused_with_those_there_are(tmp_path: Path) -> None:
    ran = bash("venv_of quick", tmp_path)
    assert ran.returncode == 1
    assert "embedded, cpu or gpu" in ran.stderr


def test_a_gpu_profile_without_a_gpu_is_refused_before_anything_is_installed(
    tmp_path: Path,
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'No devices were found'\n")
    driver.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    ran = subprocess.run(
        [ROOT / "start.sh"], env={"PATH": path, "PROFILE": "gpu"}, text=True,
        capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert "set PROFILE to cpu or embedded" in ran.stderr
