"""Runs a file of questions through the search and counts what is found, missed and declined."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuserver.knowledge.knowledge_bases import KnowledgeBases
from gpuserver.language import Language


@dataclass(frozen=True)
class Report:
    """`found_first` and `found_in_three` are counts, of passages shown beside a refusal too;
    `missed` and `answered` hold questions."""

    asked: int
    declined: int
    found_first: int
    found_in_three: int
    missed: tuple[str, ...]
    answered: tuple[str, ...]

    @property
    def recall_at_1(self) -> float:
        return self.found_first / self.asked if self.asked else 0.0

    @property
    def recall_at_3(self) -> float:
        return self.found_in_three / self.asked if self.asked else 0.0

    @property
    def refusal_rate(self) -> float:
        return self.declined / self.asked if self.asked else 0.0

    def __str__(self) -> str:
        missed = "".join(f"\n  missed: {line}" for line in self.missed)
        return (
            f"{self.asked} asked, {self.declined} declined, right passage first "
            f"{self.found_first}, in the first three {self.found_in_three}{missed}"
        )


def read(path: Path) -> list[dict[str, Any]]:
    """The questions of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def run(
    bases: KnowledgeBases,
    kb_ids: Sequence[str],
    language: Language,
    questions: Sequence[Mapping[str, Any]],
    keep: Callable[[Mapping[str, Any]], bool] = lambda question: True,
) -> Report:
    """A question's right passages have the heading `heading` or one of `also`; outside: neither."""
    declined = first = three = 0
    missed: list[str] = []
    answered: list[str] = []
    kept = [question for question in questions if keep(question)]
    for question in kept:
        found, near = bases.find(question["question"], language, kb_ids)
        headings = [passage.heading for passage in found or near]
        right = {question["heading"], *question.get("also", ())} if "heading" in question else set()
        declined += not found
        first += bool(right & set(headings[:1]))
        three += bool(right & set(headings[:3]))
        if found:
            answered.append(f"{question['question']} → {headings[0]} ({found[0].similarity:.2f})")
        if right and not right & set(headings[:3]):
            missed.append(f"{question['question']} → {headings[:3] or 'declined'}")
    return Report(len(kept), declined, first, three, tuple(missed), tuple(answered))
