"""Bytes of a text file to characters: Unicode with or without a mark, or the Chinese standard."""

from __future__ import annotations

import codecs
import re
from typing import Final

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
# Pairs of two high bytes are the characters in daily use; other pairs are what the accented letters
# of another encoding make with the letter behind them.
_PAIR = re.compile(rb"[\x81-\xfe][\x30-\xfe]")
_COMMON_SHARE: Final = 0.8


def decode(data: bytes) -> str | None:
    """The text, or None where the bytes are none that can be told for sure."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding)
    if b"\x00" in data:
        return None
    return _decoded(data, "utf-8") or decode_chinese(data) or ("" if not data else None)


def decode_chinese(data: bytes) -> str | None:
    """GB18030, where most of it is the characters in daily use."""
    text = _decoded(data, "gb18030")
    if text is None:
        return None
    pairs = _PAIR.findall(data)
    common = sum(pair[0] >= 0xA1 and pair[1] >= 0xA1 for pair in pairs)
    return text if common >= _COMMON_SHARE * len(pairs) else None


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None
