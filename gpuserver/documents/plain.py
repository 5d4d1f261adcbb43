"""Plain text: paragraphs as they were meant, chapters by their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gpuserver.documents import Extracted
from gpuserver.documents.building import Builder, Source
from gpuserver.documents.cleaning import clean
from gpuserver.documents.decoding import decode
from gpuserver.language import HAN

_NUMERAL: Final = "[0-9一二三四五六七八九十百零〇两]{1,6}"
_CHAPTER = re.compile(
    rf"(?:第\s*{_NUMERAL}\s*[章课讲篇编部]|(?:chapter|part|unit|lesson|module)\s+[\divxlc]+\b)"
    r".{0,60}",
    re.IGNORECASE,
)
_SECTION = re.compile(
    rf"(?:第\s*{_NUMERAL}\s*节|section\s+\d+\b|\d{{1,2}}(?:\.\d{{1,2}}){{1,3}}\.?\s+\S|[一二三四五六七八九十]{{1,3}}、)"
    r".{0,60}",
    re.IGNORECASE,
)
_ENDS = re.compile(r"[.,;!?。，；！？]$")
_RULE = re.compile(r"(=|-|\*|~){3,}")
_ITEM = re.compile(r"[-*•]\s|\d{1,3}[.)、]\s?|[(（]\d{1,3}[)）]")
_WRAPPED_AT: Final = (40, 120)
_NEARLY_FULL: Final = 0.7


def read(source: Source) -> Extracted:
    """Raises DocumentUnreadable, DocumentTooLarge."""
    builder = Builder(source)
    for group in re.split(r"\n[ \t]*\n", clean(text_of(source))):
        lines = [line.strip() for line in group.split("\n") if line.strip()]
        _group(builder, lines)
    source.told(1, 1)
    return builder.extracted()


def text_of(source: Source) -> str:
    """A text file's characters. Raises DocumentUnreadable where its encoding can't be told."""
    text = decode(source.path.read_bytes())
    if text is None:
        raise source.unreadable(
            "it is no text that can be read; save it as UTF-8", "无法识别的文本，请另存为 UTF-8"
        )
    return text


def _group(builder: Builder, lines: Sequence[str]) -> None:
    """Lines that stand together: titles among them, and paragraphs."""
    rest: list[str] = []
    for place, line in enumerate(lines):
        underlined = place + 1 < len(lines) and _RULE.fullmatch(lines[place + 1]) is not None
        level = 1 if underlined and place == 0 else _level(line)
        if level:
            _paragraphs(builder, rest)
            rest = []
            builder.heading(level, line)
        elif not _RULE.fullmatch(line):
            rest.append(line)
    _paragraphs(builder, rest)


def _level(line: str) -> int:
    if _ENDS.search(line):
        return 0
    if _CHAPTER.fullmatch(line):
        return 1
    return 2 if _SECTION.fullmatch(line) else 0


def _paragraphs(builder: Builder, lines: Sequence[str]) -> None:
    if not lines:
        return
    longest = max(map(len, lines))
    full = sum(len(line) >= _NEARLY_FULL * longest for line in lines[:-1])
    least, most = _WRAPPED_AT
    if any(map(_ITEM.match, lines)):
        builder.block("\n".join(lines))
    elif len(lines) > 1 and least <= longest <= most and full * 2 > len(lines) - 1:
        builder.block(joined(lines))
    else:
        for line in lines:
            builder.block(line)


def joined(lines: Sequence[str]) -> str:
    """Lines of one paragraph; Chinese is written without a space where two meet."""
    text = ""
    for line in lines:
        chinese = text and re.match(f"[{HAN}，。]", text[-1]) and re.match(f"[{HAN}]", line)
        text += line if not text or chinese else f" {line}"
    return text
