"""Pieces that say nothing that another piece doesn't: repeated slides, boilerplate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from gpuserver.documents import Piece
from gpuserver.language import prose, sentences

_ANYWHERE: Final = 40
"""Letters: a shorter sentence, "The answer is yes.", depends on the titles above it."""
_MOST_COMPARED: Final = 50
# Signs of operators and decimal points say something; these don't.
_NOT_SAID = re.compile(r"[\s;!?\"'“”‘’。，；！？、…•]+|[.,](?!\d)")
_FENCE_LINE = re.compile(r"^ {0,3}(?:```|~~~).*$", re.MULTILINE)


def without_repetition(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Pieces of which not every sentence stands in one other piece that is kept.

    Case, punctuation and white space don't count. Of two pieces that say the same the earlier is
    kept. Below other titles a few words may mean something else, so only longer ones are
    repetition there.
    """
    pieces = _different(pieces)
    said = [_sentences(piece) for piece in pieces]
    lengths = [sum(map(len, each)) for each in said]
    where: dict[str, list[int]] = {}
    for place, each in enumerate(said):
        for sentence in each:
            places = where.setdefault(sentence, [])
            if len(places) < _MOST_COMPARED:
                places.append(place)
    dropped: set[int] = set()
    for place, piece in enumerate(pieces):
        for other in _holding(said[place], where):
            if other == place or other in dropped:
                continue
            if said[other] == said[place] and other > place:
                continue
            if piece.heading == pieces[other].heading or lengths[place] >= _ANYWHERE:
                dropped.add(place)
                break
    return (piece for place, piece in enumerate(pieces) if place not in dropped)


def _different(pieces: Sequence[Piece]) -> list[Piece]:
    first: dict[tuple[str, str], Piece] = {}
    for piece in pieces:
        heading = piece.heading if len(piece.text) < _ANYWHERE else ""
        first.setdefault((heading, piece.text), piece)
    return list(first.values())


def _holding(sentences: frozenset[str], where: dict[str, list[int]]) -> list[int]:
    """The pieces that hold all of these sentences."""
    lists = sorted((where[sentence] for sentence in sentences), key=len)
    if not lists:
        return []
    common = set(lists[0])
    for places in lists[1:]:
        if len(common) == 1:
            break
        common.intersection_update(places)
    return sorted(common)


def _sentences(piece: Piece) -> frozenset[str]:
    code = "`" in piece.text or "~~~" in piece.text
    text = _FENCE_LINE.sub("", piece.text) if code else prose(piece.text)
    bare = (_NOT_SAID.sub("", sentence.casefold()) for sentence in sentences(text))
    return frozenset(sentence for sentence in bare if sentence)
