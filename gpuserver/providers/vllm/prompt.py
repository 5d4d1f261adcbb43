"""Conversations as a model reads them, cut at their beginning until they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gpuserver.errors import PromptTooLong
from gpuserver.providers import Message, Request
from gpuserver.providers.vllm.upstream import AsyncLLM, ChatParams, TokenizeParams

_TEMPLATE: Final[Mapping[str, Any]] = {"add_generation_prompt": True, "tokenize": False}
_CHAT: Final = ChatParams(chat_template_kwargs=dict(_TEMPLATE))
# What a task asks for is not thought about aloud, by models that let one choose.
_TASK: Final = ChatParams(chat_template_kwargs={**_TEMPLATE, "enable_thinking": False})
# Templates write the special tokens themselves. The length is looked at here.
_TOKENS: Final = TokenizeParams(max_total_tokens=None, add_special_tokens=False)
_TRIAL: Final = (
    Message("system", "You are a tutor."),
    Message("user", "Hello."),
    Message("assistant", "Hello."),
    Message("user", "What is a list?"),
)


async def render(llm: AsyncLLM, request: Request) -> tuple[Any, int]:
    """The prompt as vLLM takes it, and how many tokens the answer may have.

    Older exchanges are left out, as few as possible, until prompt and answer fit the model's
    context. Raises PromptTooLong when nothing is left to leave out.
    """
    context: int = llm.model_config.max_model_len
    # An answer that may fill the context would leave no room for a question.
    room = min(request.sampling.max_tokens, context // 2)
    params = _TASK if request.json_schema is not None else _CHAT
    cuts = _cuts(request.messages)
    prompt = await _prompt(llm, request.messages, params)
    if length(prompt) + room > context:
        # Each exchange left out makes it shorter: look for the first that is short enough.
        low, high = 1, len(cuts) - 1
        fitting = None
        while low <= high:
            middle = (low + high) // 2
            prompt = await _prompt(llm, cuts[middle], params)
            if length(prompt) + room <= context:
                fitting, high = prompt, middle - 1
            else:
                low = middle + 1
        if fitting is None:
            raise PromptTooLong
        prompt = fitting
    return prompt, min(request.sampling.max_tokens, context - length(prompt))


def try_template(llm: AsyncLLM) -> None:
    """Render a small conversation, which also compiles the template. Blocking.

    Raises what the template or its tokenizer raises.
    """
    llm.renderer.render_chat([_plain(_TRIAL)], _CHAT, _TOKENS)


def length(prompt: Any) -> int:
    """How many tokens a prompt has."""
    return len(prompt["prompt_token_ids"])


async def _prompt(llm: AsyncLLM, messages: Sequence[Message], params: ChatParams) -> Any:
    _, (prompt,) = await llm.renderer.render_chat_async([_plain(messages)], params, _TOKENS)
    return prompt


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _cuts(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """The conversation without its first exchange, its first two, and so on; whole at first.

    What is said before all exchanges stays, and so does the last message: passages and question.
    """
    first = 1 if messages[0].role == "system" else 0
    starts = [
        at for at in range(first, len(messages)) if messages[at].role == "user" or at == first
    ]
    return [[*messages[:first], *messages[at:]] for at in starts]
