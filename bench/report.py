"""The last results as one table and one plot, in docs/performance.md: `python -m bench.report`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from html import escape
from typing import Any, Final

import orjson

from bench.common import RESULTS, ROOT, Figure, table

_PAGE: Final = ROOT / "docs" / "performance.md"
_PLOT: Final = ROOT / "docs" / "performance.svg"
_BETWEEN: Final = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)
_WIDTH, _LABEL, _ROW, _TOP = 860, 370, 26, 46
_BOUND_X: Final = 690
_MOST: Final = 1.25
"""What misses its bound by more than this ends at the margin; its number says by how much."""


def _results() -> Iterator[dict[str, Any]]:
    """What whole runs have written, in the order in which they ran."""
    whole = [x for x in RESULTS.glob("*.json") if not x.name.endswith(".quick.json")]
    yield from sorted(
        (orjson.loads(path.read_bytes()) for path in whole), key=lambda result: str(result["date"])
    )


def _figures(result: dict[str, Any]) -> list[Figure]:
    names = {field.name for field in fields(Figure)}
    return [Figure(**{k: v for k, v in row.items() if k in names}) for row in result["figures"]]


def plot(figures: Sequence[Figure]) -> str:
    """A bar for each figure with a bound: how much of the bound it uses up."""
    bars = [(figure, figure.share) for figure in figures if figure.share is not None]
    height = _TOP + _ROW * len(bars) + 34
    rows = "\n".join(_bar(figure, share, _TOP + _ROW * n) for n, (figure, share) in enumerate(bars))
    bottom = _TOP + _ROW * len(bars)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" \
font-family="sans-serif" font-size="13" role="img">
<title>Measured figures as shares of their bounds</title>
<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>
<text x="12" y="24" font-size="15" font-weight="bold" fill="#222222">\
How much of its bound each figure uses (shorter is better)</text>
{rows}
<line x1="{_BOUND_X}" y1="{_TOP - 6}" x2="{_BOUND_X}" y2="{bottom}" stroke="#222222" \
stroke-dasharray="4 3"/>
<text x="{_BOUND_X}" y="{bottom + 18}" text-anchor="middle" fill="#222222">bound</text>
</svg>
"""


def _bar(figure: Figure, share: float, top: int) -> str:
    length = max(2, round(min(max(share, 0.0), _MOST) * (_BOUND_X - _LABEL)))
    colour = "#2f7d5b" if figure.ok else "#b3402e"
    sign = "≥" if figure.at_least else "≤"
    value = f"{figure.value:.3g}{f' {figure.unit}' if figure.unit else ''}"
    limit = f"{value} ({sign} {figure.bound:g})"
    inside = length > 150
    x = _LABEL + length + (-8 if inside else 8)
    return (
        f'<text x="{_LABEL - 10}" y="{top + 14}" text-anchor="end" fill="#222222">'
        f"{escape(figure.name)}</text>\n"
        f'<rect x="{_LABEL}" y="{top}" width="{length}" height="18" rx="2" fill="{colour}"/>\n'
        f'<text x="{x}" y="{top + 14}" text-anchor="{"end" if inside else "start"}" '
        f'fill="{"#ffffff" if inside else "#222222"}">{escape(limit)}</text>'
    )


def main() -> None:
    results = list(_results())
    parts, bounded = [], []
    for result in results:
        figures = _figures(result)
        bounded += [figure for figure in figures if figure.bound is not None]
        when = f"{result['date'][:10]}, {result['machine']}, {result['seconds']:.0f} s"
        parts.append(f"### {result['benchmark']}\n\n{when}\n\n{table(figures)}\n")
    _PLOT.write_text(plot(bounded), encoding="utf-8")
    filled = "\n".join(["", *parts, ""])
    page = _PAGE.read_text(encoding="utf-8")
    _PAGE.write_text(
        _BETWEEN.sub(lambda found: found[1] + filled + found[2], page), encoding="utf-8"
    )
    print(f"{_PAGE} and {_PLOT} hold the figures of {len(results)} benchmarks")


if __name__ == "__main__":
    main()
