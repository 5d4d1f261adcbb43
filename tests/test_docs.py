"""The documentation is true: settings, messages, error codes, links and pictures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic_core import PydanticUndefined

from gpuserver import errors, protocol
from gpuserver.config import Settings

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "bench/README.md", "frp/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SETTINGS = {
    name.upper(): field
    for name, field in Settings.model_fields.items()
    if name != "tutor_overrides"
}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def shown(default: Any) -> str:
    if default is None or default is PydanticUndefined:
        return ""
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float) and default.is_integer():
        return str(int(default))
    return str(default)


def setting_row(name: str) -> str:
    field = SETTINGS[name]
    default = shown(field.default)
    return f"| `{name}` | {f'`{default}`' if default else ''} | {field.description} |"


def subclasses(kind: type[errors.GpuServerError]) -> list[type[errors.GpuServerError]]:
    return [kind, *(x for child in kind.__subclasses__() for x in subclasses(child))]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    assert setting_row(name) in text("docs/configuration.md")


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_in_the_example_with_its_default(name: str) -> None:
    line = re.compile(rf"^#?{name}={re.escape(shown(SETTINGS[name].default))}$", re.MULTILINE)
    assert line.search(text(".env.example"))


def test_the_documents_name_no_setting_that_is_not_there() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|", text("docs/configuration.md"), re.MULTILINE)
    lines = re.findall(r"^#?([A-Z_]+)=", text(".env.example"), re.MULTILINE)
    assert set(rows) == set(lines) - {"TUTOR_", "CUDA_VISIBLE_DEVICES"} == set(SETTINGS)


@pytest.mark.parametrize(
    "message", get_args(protocol.ServerMessage2), ids=lambda message: message.__name__
)
def test_every_server_message_and_field_is_documented(message: Any) -> None:
    fields = {field.name: field for field in dataclasses.fields(message)}
    section = _section(str(fields.pop("type").default))
    for name in fields.keys() - {"seq", "timestamp", "turn_id"}:
        assert f"`{name}`" in section, f"{message.__name__}.{name}"


@pytest.mark.parametrize("message", get_args(protocol.ClientMessage), ids=lambda m: m.__name__)
def test_every_client_message_and_field_is_documented(message: Any) -> None:
    kind = get_args(message.model_fields["type"].annotation)[0]
    row = re.search(rf'^\| `\{{"type":"{kind}".*$', text("docs/protocol.md"), re.MULTILINE)
    assert row, kind
    for name in message.model_fields.keys() - {"type"}:
        assert name in row[0]


@pytest.mark.parametrize("kind", subclasses(errors.GpuServerError), ids=lambda kind: str(kind.code))
def test_every_error_code_is_documented_and_has_both_languages(kind: Any) -> None:
    assert f"| `{kind.code}` | {kind.status} |" in text("docs/protocol.md")
    # What is itself a text has a Chinese one beside it: {problem}, {problem_zh}.
    chinese = [name.removesuffix("_zh") for name in re.findall(r"{(\w+)", kind.zh)]
    assert sorted(re.findall(r"{(\w+)", kind.en)) == sorted(chinese)
    assert re.search("[\u4e00-\u9fff]", kind.zh)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_that_the_pages_name_exist(page: Path) -> None:
    for name in re.findall(r"`((?:gpuserver|tests|bench|docs|frp)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def _section(kind: str) -> str:
    """The row or the paragraphs that describe a message."""
    page = text("docs/protocol.md")
    found = re.search(rf"^\| `{re.escape(kind)}` \|.*$", page, re.MULTILINE)
    assert found, kind
    return found[0]
