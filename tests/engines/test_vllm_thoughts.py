"""Thoughts and words told apart by vLLM's parsers, on scripted tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gpuserver.errors import ProviderUnavailable
from gpuserver.providers.vllm.thoughts import Thoughts, parser_class

ASKED = "<|im_start|>user\nWhat is a list?<|im_end|>\n<|im_start|>assistant\n"
BOTH = ("Hm, a list", "A list holds.")


@pytest.fixture(scope="module")
def tokenizer(thinking_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(thinking_model)


def told(tokenizer: Any, name: str, prompt: str, pieces: Sequence[str]) -> tuple[str, str]:
    """What is thought and what is said in an answer that comes in these pieces."""
    parser = parser_class(name, tokenizer)
    assert parser is not None
    thoughts = Thoughts(parser(tokenizer), tokenizer.encode(prompt))
    deltas = [
        delta
        for number, text in enumerate(pieces, 1)
        for delta in thoughts.split(text, tokenizer.encode(text), number == len(pieces))
    ]
    assert all(delta.text for delta in deltas)
    thought = "".join(delta.text for delta in deltas if delta.thought)
    return thought, "".join(delta.text for delta in deltas if not delta.thought)


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3"])
@pytest.mark.parametrize(
    ("begun", "pieces", "expected"),
    [
        ("", ["<think>", "Hm", ", a list", "</think>", "A list", " holds", "."], BOTH),
        ("", ["<think>Hm,", " a list</think>A list holds", "."], BOTH),
        ("<think>", ["Hm, a", " list", "</think>", "A list holds", "."], BOTH),
        ("<think>", ["Hm, a list</think>A list holds."], BOTH),
        # Cut off before it has said anything.
        ("<think>", ["Hm", ", a list"], ("Hm, a list", "")),
        # Not asked to think.
        ("<think></think>", ["A list", " holds", "."], ("", "A list holds.")),
    ],
)
def test_thoughts_and_words(
    tokenizer: Any, name: str, begun: str, pieces: list[str], expected: tuple[str, str]
) -> None:
    assert told(tokenizer, name, ASKED + begun, pieces) == expected


@pytest.mark.parametrize("name", ["no-such-parser", "mistral"])
def test_a_parser_that_does_not_fit_the_model_is_refused(tokenizer: Any, name: str) -> None:
    with pytest.raises(ProviderUnavailable, match="LLM_REASONING"):
        parser_class(name, tokenizer)


def test_without_a_parser_nothing_is_looked_for(tokenizer: Any) -> None:
    assert parser_class("", tokenizer) is None
