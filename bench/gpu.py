"""The product over a chat model of a real size, on a GPU: `python -m bench.gpu`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench import chat_model, spoken_turn
from bench.clients import SPEECH_ONLY, Client, clients
from bench.common import Figure, Server, run, server
from gpuserver.client import Management
from tests.engines import tiny_chat

SOON: Final = 0.8
"""Seconds in which a talker wants to hear something."""
_COPIES: Final = 20
_COPY_BYTES: Final = 1 << 30
_MOST_TALKERS: Final = 512
_TOKENS: Final = 400


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a decoder with grouped-query attention; the vocabulary is a small one."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    feed_forward: int


SHAPES: Final[Mapping[str, Shape]] = {
    # As Qwen3-8B: 7 billion parameters without its vocabulary.
    "8b": Shape(4096, 36, 32, 8, 12288),
    # To try this program where there is no GPU.
    "small": Shape(256, 4, 4, 2, 704),
}


def model_of(shape: str) -> Path:
    """The folder of a model of random weights in a real one's shape, built once."""
    return tiny_chat.cached(f"shape-{shape}", partial(_build, SHAPES[shape]))


def _build(shape: Shape, folder: Path) -> None:
    tokenizer = tiny_chat.tokenizer_of(folder)
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=shape.hidden,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.key_heads,
                intermediate_size=shape.feed_forward,
                max_position_embeddings=8192,
                eos_token_id=tokenizer.eos_token_id,
                tie_word_embeddings=False,
            )
        )
    finally:
        torch.set_default_dtype(usual)
    model.save_pretrained(folder)


class Listener(Client):
    """Notes when it heard the first speech."""

    first = 0.0

    def take(self, kind: int, payload: bytes) -> None:
        if kind == 0x82 and not self.first:
            self.first = time.monotonic()
            self.warm.set()
        super().take(kind, payload)


async def _first_sounds(target: Server, talkers: int) -> list[float]:
    """Seconds to the first sound of everybody's answer, when all ask at once."""
    async with clients(target, talkers, Listener, ours=True) as listening:
        for client in listening:
            client.tell(SPEECH_ONLY)
        asked = time.monotonic()
        for client in listening:
            client.ask("What is a list?")
        for client in listening:
            await client.warm.wait()
            client.tell({"type": "interrupt"})
        for client in listening:
            await client.done.wait()
        return [client.first - asked for client in listening]


async def _talkers(**settings: Any) -> list[Figure]:
    """How many may ask at the same moment until one in twenty waits longer than is natural."""
    talkers, in_time, figures = 1, 0, []
    given = {**settings, "max_sessions": _MOST_TALKERS, "max_connections": 2 * _MOST_TALKERS}
    voiced = ("--tokens", str(_TOKENS), "--voice", "auto")
    with server("bench.chat_server", *voiced, **given) as target:
        await _first_sounds(target, 1)
        while talkers <= _MOST_TALKERS:
            times = await _first_sounds(target, talkers)
            if talkers == 1:
                figures.append(Figure("first sound, one talker", median(times) * 1000, "ms"))
            if len(times) > 1 and quantiles(times, n=20)[-1] > SOON:
                break
            talkers, in_time = max(talkers + 1, round(talkers * 1.5)), talkers
    name = f"talkers at the same moment with a sound in {SOON * 1000:.0f} ms"
    return [Figure(name, in_time), *figures]


async def _roof(model: Path, **settings: Any) -> list[Figure]:
    """One student's tokens a second, against reading all weights once for each of them."""
    weights = _weights(model)
    with server("bench.chat_server", "--tokens", str(_TOKENS), **settings) as target:
        async with Management(target.url, timeout=chat_model.TURN_SECONDS) as management:
            bench = chat_model.Bench(target, management)
            await bench.direct(1, _TOKENS)
            began = time.monotonic()
            await bench.direct(1, _TOKENS)
            speed = _TOKENS / (time.monotonic() - began)
            asking = [await bench.session()]
            ours, _ = await bench.spent(partial(chat_model.answers, asking))
    bandwidth = _bandwidth()
    return [
        Figure("share of the bandwidth roof, one student", ours * weights / bandwidth),
        Figure("share of the bandwidth roof, the engine alone", speed * weights / bandwidth),
        Figure("memory bandwidth", bandwidth / 1e9, "GB/s"),
        Figure("weights", weights / 1e9, "GB"),
        Figure("one student", ours, "tokens a second"),
    ]


def _weights(model: Path) -> int:
    """Bytes that an answer's every token reads."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def _bandwidth() -> float:
    """Bytes a second that copying reads and writes, as measured here."""
    on_gpu = torch.cuda.is_available()
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device="cuda" if on_gpu else "cpu")
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(_COPIES):
        began = time.perf_counter()
        target.copy_(source)
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * _COPY_BYTES / best


async def measure(quick: bool, *, model: Path) -> list[Figure]:
    """The engine goes as fast as it can; the recogniser and the voice are the environment's."""
    settings = {"llm_provider": "vllm", "llm_model": str(model)}
    # First: later the engine's memory is in the way.
    figures = await _roof(model, **settings)
    figures += await _talkers(**settings)
    figures += await spoken_turn.measure(quick, **settings)
    return figures + await chat_model.measure(quick, rate=0, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__)
    parser.add_argument("--model", type=Path, help="a real model's folder; without: random weights")
    parser.add_argument("--shape", choices=SHAPES, default="8b", help="of the random weights")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, rougher figures")
    given = parser.parse_args()
    model = given.model or model_of(given.shape)
    sys.exit(0 if run("gpu", partial(measure, model=model), quick=given.quick) else 1)


if __name__ == "__main__":
    main()
