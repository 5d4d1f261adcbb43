"""What is asked of an OpenAI-compatible server, made to fit what it takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from gpuserver.providers import Request
from gpuserver.providers.openai.wire import Refusal

_DISPENSABLE: Final = ("stream_options", "max_tokens", "temperature", "top_p", "stop")
"""Parameters that an answer can do without; some models take only some of them."""


def body(request: Request, model: str, left_out: Collection[str]) -> dict[str, Any]:
    """A streamed chat completion, without the parameters that the server has refused before."""
    sampling = request.sampling
    out: dict[str, Any] = {
        "model": model,
        "messages": [{"role": x.role, "content": x.content} for x in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.stop:
        out["stop"] = list(sampling.stop)
    for name in left_out:
        _leave_out(out, name)
    return out


def adapt(body: dict[str, Any], refusal: Refusal, left_out: set[str]) -> bool:
    """Make the request one that the server may take; says whether there was anything to do."""
    if refusal.too_long:
        body["messages"] = _shorter(body["messages"])
        return bool(body["messages"])
    if refusal.status not in {400, 422}:
        return False
    sent = [name for name in _DISPENSABLE if name in body]
    # Many servers know no stream options and don't say what it is that they don't know.
    suspects = [*filter(refusal.names, sent), *(x for x in sent if x == "stream_options")]
    for name in suspects[:1]:
        _leave_out(body, name)
        left_out.add(name)
    return bool(suspects)


def _leave_out(body: dict[str, Any], name: str) -> None:
    value = body.pop(name, None)
    if name == "max_tokens" and value is not None:
        # What newer models call it.
        body["max_completion_tokens"] = value


def _shorter(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Without the older half of the conversation; [] when there is none left to leave out."""
    start = 1 if messages[0]["role"] == "system" else 0
    history = messages[start:-1]
    if not history:
        return []
    # By question and answer.
    left_out = (len(history) // 2 + 1) // 2 * 2 or len(history)
    return [*messages[:start], *history[left_out:], messages[-1]]
