"""Tells what a reasoning model thinks from what it says, as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gpuserver.errors import ProviderUnavailable
from gpuserver.providers import Delta
from gpuserver.providers.vllm.upstream import ReasoningParser, ReasoningParserManager


def parser_class(name: str, tokenizer: Any) -> type[ReasoningParser] | None:
    """vLLM's parser of that name, None for "".

    Raises ProviderUnavailable if there is none, or if the model has no words for it to go by.
    """
    if not name:
        return None
    if name not in ReasoningParserManager.list_registered():
        raise ProviderUnavailable(
            problem=f"vLLM has no reasoning parser named {name!r}.",
            fix="set LLM_REASONING to one of vLLM's, such as qwen3 or deepseek_r1, or leave it.",
        )
    found: type[ReasoningParser] = ReasoningParserManager.get_reasoning_parser(name)
    try:
        found(tokenizer)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ProviderUnavailable(
            problem=f"The model does not mark its thoughts as {name!r} expects.",
            fix="set LLM_REASONING to the parser that its publisher names, or leave it empty.",
        ) from error
    return found


Split = Callable[[str, Sequence[int], bool], Iterable[Delta]]
"""Text, its tokens and whether it is the last → what the student is given."""


def unsplit(text: str, tokens: Sequence[int], finished: bool) -> Iterable[Delta]:
    """`Split` for a model that does not think aloud."""
    return (Delta(text),) if text else ()


class Thoughts:
    """The thoughts and words of one answer."""

    def __init__(self, parser: ReasoningParser, prompt: Sequence[int]) -> None:
        """`prompt`: its tokens; a template may have begun the thoughts, or have ended them."""
        self._parser = parser
        self._text = ""
        self._tokens: list[int] = []
        self._over: bool = parser.is_reasoning_end(prompt)
        if not self._over:
            parser.adjust_initial_state_from_prompt(prompt)

    def split(self, text: str, tokens: Sequence[int], finished: bool) -> Iterator[Delta]:
        """The next piece of text, with its tokens, as thoughts and words."""
        if self._over:
            yield from unsplit(text, tokens, finished)
            return
        before, self._text = self._text, self._text + text
        known, self._tokens = self._tokens, [*self._tokens, *tokens]
        told = self._parser.extract_reasoning_streaming(
            before, self._text, text, known, self._tokens, tokens
        )
        yield from self._deltas(told)
        if self._parser.engine_based_streaming:
            self._over = self._parser.has_engine_confirmed_reasoning_end()
        else:
            self._over = self._parser.is_reasoning_end_streaming(self._tokens, tokens)
        if (self._over or finished) and self._parser.engine_based_streaming:
            yield from self._deltas(self._parser.finish_streaming())  # what it has held back

    def _deltas(self, told: Any) -> Iterator[Delta]:
        if told is None:
            return
        # Some parsers leave the marker there when more than it came at once.
        thought = (told.reasoning or "").replace(self._parser.reasoning_start_str or "\0", "", 1)
        if thought:
            yield Delta(thought, thought=True)
        if told.content:
            yield Delta(told.content)
