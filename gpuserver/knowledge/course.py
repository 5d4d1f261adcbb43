"""A course folder, `<root>/<language>/*.md`, read into passages: one `## Heading`, one passage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gpuserver.errors import ConfigurationError
from gpuserver.language import LANGUAGES, Language
from gpuserver.providers import Passage

MAX_FILE_BYTES: Final = 4 << 20
READINGS_FILE: Final = "readings.txt"

_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_NOT_IN_ID = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class KnowledgeBase:
    """What a `kb_id` stands for; the passages of all its languages, in reading order."""

    kb_id: str
    title: str
    passages: tuple[Passage, ...]
    readings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Words that people say in more ways than one, and how, in IPA."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Of each document, by the id that its passages have."""


def load(kb_id: str, root: Path) -> KnowledgeBase:
    """Read a course folder. Blocking. Raises ConfigurationError, naming the file and the line."""
    passages: list[Passage] = []
    files: dict[str, Path] = {}
    for language in LANGUAGES:
        for path in _files(root / language):
            passages.extend(_read(kb_id, language, path))
            files[passages[-1].document_id] = path
    if not passages:
        raise ConfigurationError(
            problem=f"There is no course material in {root}.",
            fix=f"put Markdown files in {' or '.join(f'{root / tag}/' for tag in LANGUAGES)}, "
            "or take this knowledge base out of the configuration.",
        )
    title = re.sub(r"[-_]+", " ", root.name).strip()
    title = title[:1].upper() + title[1:]
    return KnowledgeBase(kb_id, title, tuple(passages), _readings(root / READINGS_FILE), files)


def _readings(path: Path) -> dict[str, tuple[str, ...]]:
    """The lines `word reading reading …` of the file, if there is one; `#` begins a remark."""
    if not path.exists():
        return {}
    readings: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        word, *said = line.partition("#")[0].split() or [""]
        if word and not said:
            raise _malformed(path, number, f"{word!r} has no reading", "write it in IPA behind it")
        if word:
            readings[word.lower()] = tuple(said)
    return readings


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.glob("*.md") if path.is_file())
    except OSError as error:
        raise ConfigurationError(
            problem=f"The course folder {folder} can't be read: {error}.",
            fix="let the server read it.",
        ) from error


def _malformed(path: Path, line: int, problem: str, fix: str) -> ConfigurationError:
    return ConfigurationError(problem=f"{path}, line {line}: {problem}.", fix=f"{fix}.")


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _malformed(path, 1, f"the file is larger than {MAX_FILE_BYTES} bytes", "split it")
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(
            problem=f"The course file {path} can't be read: {error}.",
            fix="let the server read it, or take it out of the folder.",
        ) from error
    except UnicodeDecodeError as error:
        raise _malformed(path, 1, "the file is not UTF-8 text", "save it as UTF-8") from error


def _lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Number and text of every line, and whether it is code, where `# note` is no heading."""
    fence, opened = "", 0
    for number, line in enumerate(_text(path).splitlines(), start=1):
        match = _FENCE.match(line)
        if fence:
            yield number, line, True
            if match and match.group(1).startswith(fence):
                fence = ""
            continue
        if match:
            fence, opened = match.group(1), number
        yield number, line, bool(match)
    if fence:
        raise _malformed(path, opened, "this code block never ends", "close it with ```")


def _read(kb_id: str, language: Language, path: Path) -> Iterator[Passage]:
    chapter = ""
    sections: list[tuple[int, str, list[str]]] = []
    for number, line, in_code in _lines(path):
        if in_code or not line.startswith(("# ", "## ")):
            if sections:
                sections[-1][2].append(line)
            elif line.strip():
                raise _malformed(path, number, "this text belongs to no passage",
                                 "put it under '# Chapter title' and '## Heading'")  # fmt: skip
        elif line.startswith("## "):
            if not chapter:
                raise _malformed(path, number, "a passage before the chapter title",
                                 "begin the file with '# Chapter title'")  # fmt: skip
            sections.append((number, line[3:].strip(), []))
        elif chapter:
            raise _malformed(path, number, "a second chapter title", "write '## ' or a new file")
        else:
            chapter = line[2:].strip()
    yield from _passages(kb_id, language, path, chapter, sections)


def _passages(
    kb_id: str, language: Language, path: Path, chapter: str,
    sections: list[tuple[int, str, list[str]]],
) -> Iterator[Passage]:  # fmt: skip
    if not sections:
        raise _malformed(path, 1, "there is no passage", "write '## Heading' and text below it")
    taken: set[str] = set()
    document_id = f"{language}/{path.stem}"
    for n, (number, heading, lines) in enumerate(sections, start=1):
        text = "\n".join(lines).strip()
        slug = _NOT_IN_ID.sub("-", heading.lower()).strip("-")
        if not slug or not text:
            problem = "a passage without text" if slug else "an empty heading"
            raise _malformed(path, number, problem, "write it or take the heading out")
        if slug in taken:
            raise _malformed(path, number, f"a second passage {heading!r}", "give it another name")
        taken.add(slug)
        # Stable over restarts and over edits of the text: records and citations refer to it.
        passage_id = f"{document_id}#{slug}"
        yield Passage(
            passage_id, kb_id, chapter, heading, text, language, document_id=document_id, n=n
        )
