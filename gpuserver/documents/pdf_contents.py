"""Tables of contents: they name what stands elsewhere in a PDF, and answer nothing themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from gpuserver.documents.pdf_lines import Line

_ENTRY = re.compile(r"(?:\s?[.·…]){4,}\s*(\d{1,5})$")
_LEAST: Final = 3


def without_contents(pages: Sequence[Sequence[Line]]) -> list[Sequence[Line]]:
    """Pages, those empty of which at least half the lines lead by dots to pages of the document.

    The numbers rise: dots in a list of prices or in an exercise lead to others.
    """
    return [[] if _is_contents(lines, len(pages)) else lines for lines in pages]


def _is_contents(lines: Sequence[Line], pages: int) -> bool:
    found = [int(entry[1]) for line in lines if (entry := _ENTRY.search(line.text))]
    if len(found) < _LEAST or len(found) * 2 < len(lines):
        return False
    return found[-1] <= pages and all(one <= next_one for one, next_one in pairwise(found))
