"""Chat models in vLLM, in processes of their own beside the server."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import PurePath
from typing import Any, Final

from gpuserver.errors import EngineFailed, ProviderUnavailable
from gpuserver.providers import Delta, Message, Piece, Place, Request, Sampling, Status
from gpuserver.providers.vllm.adapters import Adapters
from gpuserver.providers.vllm.engine import Engine
from gpuserver.providers.vllm.loading import arguments, explained, sleeps
from gpuserver.providers.vllm.prompt import length, render, try_template
from gpuserver.providers.vllm.thoughts import Split, Thoughts, parser_class, unsplit
from gpuserver.providers.vllm.upstream import (
    AsyncLLM,
    EngineDeadError,
    ReasoningParser,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
    VLLMError,
)
from gpuserver.providers.waiting_line import WaitingLine
from gpuserver.providers.weights import folder

_logger = logging.getLogger(__name__)

_PROBE: Final = Request((Message("user", "1"),), "1", (), "en", Sampling(max_tokens=1))
_PROBE_SECONDS: Final = 10.0
_SHARE_OF_DEADLINE: Final = 0.8
"""Of the time that a student would wait: after all of it, whoever probes has gone."""
_PREPARE_SECONDS: Final = 60.0
"""Longest wait for an engine that loads its adapters, falls asleep or wakes up."""
_UNFINISHED: Final = frozenset({"abort", "error"})

# On its way to a student a piece costs more than the token in it. So answers begin token by token,
# for the voice waits for its first clause, and go on with what the engine makes from beat to beat:
# in a full class a beat is longer, and all answers share it.
_SINGLY: Final = 16
"""Tokens at the beginning of an answer that are passed on as they come."""
_BEAT_SECONDS: Final = 0.01
"""For each answer at work."""
_LEAST_BEAT, _MOST_BEAT = 0.02, 0.15


class VllmLLM:
    """`LLM`, `Runtime` and `Watched`. Used from one event loop."""

    def __init__(self, model: str, place: Place) -> None:
        """`model`: its folder, or its name on a hub."""
        self._model, self._place, self._settings = model, place, place.settings
        self._log = place.data_dir / "logs" / f"vllm-{PurePath(model).name}.log"
        self._engine = Engine(self._build, self._died, self._nod_off)
        self._line = WaitingLine(self._settings.llm_running, self._settings.llm_waiting)
        self._ids = itertools.count(1)
        self._adapters = Adapters((), place.data_dir)
        self._parser: type[ReasoningParser] | None = None
        self._sleeps = sleeps(self._settings)
        self._asleep = False
        self._preparing = asyncio.Lock()
        self._prepared: AsyncLLM | None = None
        self._probing = False
        self._worked = self._left = time.monotonic()

    def load(self) -> None:
        self._place.on_progress("loading", None)
        self._engine.start()

    def close(self) -> None:
        self._engine.close()
        self._prepared = None

    def status(self) -> Status:
        state = "asleep" if self._asleep else self._engine.state
        return Status(state, self._line.running, self._line.waiting, self._engine.pids)

    async def probe(self) -> None:
        """A token. An engine that gives nobody one is hung, and is started again.

        One that sleeps is left alone. Raises EngineFailed, EngineBusy.
        """
        if self._asleep:
            return
        self._probing = True
        try:
            # Adapters may take long, which is no sign of a hung engine.
            await self._ready()
            await self._one_token()
        except VLLMError as error:
            raise self._failed(error) from None
        finally:
            self._probing = False

    async def _one_token(self) -> None:
        began = time.monotonic()
        patience = _SHARE_OF_DEADLINE * self._settings.first_token_timeout_seconds
        try:
            async with asyncio.timeout(min(_PROBE_SECONDS, patience)):
                async with aclosing(self._answer(_PROBE, began)) as deltas:
                    async for _ in deltas:
                        pass
        except TimeoutError:
            if self._worked > began:
                return
            _logger.error("The chat engine hangs; it is started again.")
            await asyncio.to_thread(self._engine.kill)
            raise EngineFailed(engine="llm") from None

    async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Raises EngineFailed, EngineBusy, PromptTooLong.

        While the engine is started again it is busy, for as long as that takes: a fallback can
        answer at once, and without one the student knows when to come back. A request without
        messages is the warm-up.
        """
        asked = time.monotonic()
        self._engine.llm()
        answer = self._answer(request if request.messages else _PROBE, asked)
        async with self._line.place(self._place.meter) as waits:
            async for waiting in waits:
                yield waiting
            try:
                async with aclosing(answer) as deltas:
                    async for delta in deltas:
                        yield delta
            finally:
                self._left = time.monotonic()

    async def _answer(self, request: Request, asked: float) -> AsyncGenerator[Delta, None]:
        """Stream one answer. What is in the loop is done for every token."""
        meter = self._place.meter
        made, output, prompt = 0, None, None
        try:
            llm = await self._ready()
            prompt, room = await render(llm, request)
            split = self._splitter(llm, prompt)
            meter.batch(self._line.running)
            async with aclosing(self._outputs(llm, prompt, room, request)) as outputs:
                async for output in outputs:
                    words = output.outputs[0]
                    self._worked = time.monotonic()
                    if not made and request is not _PROBE:  # for that no student waits
                        meter.first_token(self._worked - asked)
                    made += len(words.token_ids)
                    for delta in split(words.text, words.token_ids, output.finished):
                        yield delta
                    if words.finish_reason in _UNFINISHED:
                        raise EngineFailed(engine="llm")
                    if made > _SINGLY and not output.finished:
                        await self._next_beat()
        except (VLLMError, ValueError, KeyError) as error:
            raise self._failed(error) from None
        finally:
            if output is not None:
                meter.tokens(made, length(prompt), output.num_cached_tokens or 0)

    async def _next_beat(self) -> None:
        """Meanwhile the engine goes on, and vLLM puts together what it makes."""
        beat = min(max(_LEAST_BEAT, _BEAT_SECONDS * self._line.running), _MOST_BEAT)
        await asyncio.sleep(beat - self._worked % beat)

    def _outputs(
        self, llm: AsyncLLM, prompt: Any, room: int, request: Request
    ) -> AsyncGenerator[Any, None]:
        """What the engine makes; closing it stops the engine's work."""
        adapter = self._adapters.get(request.adapter)
        parameters = self._parameters(request, room)
        outputs: AsyncGenerator[Any, None] = llm.generate(
            prompt, parameters, str(next(self._ids)), lora_request=adapter
        )
        return outputs

    def _splitter(self, llm: AsyncLLM, prompt: Any) -> Split:
        if self._parser is None:
            return unsplit
        parser = self._parser(llm.get_tokenizer())
        return Thoughts(parser, prompt["prompt_token_ids"]).split

    def _failed(self, error: Exception) -> EngineFailed:
        # Of its death the supervisor tells. The text of others may hold the student's words.
        if not isinstance(error, EngineDeadError):
            _logger.error("The chat engine failed: %s", type(error).__name__)
            self._place.meter.failed()
        return EngineFailed(engine="llm")

    def _parameters(self, request: Request, room: int) -> SamplingParams:
        sampling, schema = request.sampling, request.json_schema
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=room,
            stop=list(sampling.stop),
            structured_outputs=None
            if schema is None
            else StructuredOutputsParams(json=dict(schema)),
            output_kind=RequestOutputKind.DELTA,
            # Some models mark their thoughts by special tokens.
            skip_special_tokens=self._parser is None,
        )

    async def _ready(self) -> AsyncLLM:
        """The engine, awake and with every adapter. Raises EngineBusy, EngineFailed."""
        llm = self._engine.llm()
        if self._prepared is llm and not self._sleeps:
            return llm
        try:
            async with asyncio.timeout(_PREPARE_SECONDS), self._preparing:
                if self._asleep:
                    await llm.wake_up()
                    self._asleep = False
                if self._prepared is not llm:
                    # Now, so that none is missing later: that would end the engine.
                    for adapter in self._adapters:
                        await llm.add_lora(adapter)
                    self._prepared = llm
        except VLLMError:
            raise
        except Exception as error:  # of no type of its own when one of its processes reports it
            if self._asleep:  # it can't wake up: only a new one helps
                await asyncio.to_thread(self._engine.kill)
            raise self._failed(error) from error
        return llm

    # In the threads that load and supervise

    def _build(self) -> AsyncLLM:
        """Raises ProviderUnavailable."""
        model = folder(self._model, self._settings, self._place.on_progress)
        self._adapters = Adapters(self._place.adapters, model)
        self._place.on_progress("loading", None)
        llm: AsyncLLM | None = None
        try:
            llm = AsyncLLM.from_engine_args(
                arguments(model, self._adapters, self._settings, self._log)
            )
            self._parser = parser_class(self._settings.llm_reasoning, llm.get_tokenizer())
            try_template(llm)
        except ProviderUnavailable:
            if llm is not None:
                llm.shutdown()
            raise
        except Exception as error:  # whatever vLLM meets in a model's files
            reason = explained(error, self._model, self._log)
            if llm is not None:
                llm.shutdown()
                reason = _no_template(self._model)
            raise reason from error
        return llm

    def _died(self) -> None:
        self._asleep = False
        self._prepared = None
        self._place.meter.failed()

    def _nod_off(self) -> None:
        """Let an engine sleep that nobody has used for long."""
        loop = self._engine.loop
        if loop is None or not self._sleeps or not self._is_idle():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._sleep(), loop).result(_PREPARE_SECONDS)
        except Exception as error:  # noqa: BLE001 - as in `_ready`; it must not end the supervisor
            _logger.warning("The chat engine did not fall asleep: %s", type(error).__name__)
            self._left = time.monotonic()

    async def _sleep(self) -> None:
        async with self._preparing:
            if self._is_idle():
                await self._engine.llm().sleep(level=1)
                self._asleep = True

    def _is_idle(self) -> bool:
        if self._asleep or self._probing or self._line.running:
            return False
        return time.monotonic() - self._left >= self._settings.llm_sleep_seconds


def _no_template(model: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        problem=f"The model {model!r} has no chat template that takes a tutor's conversation.",
        fix="choose a model that was made for chat (its name often ends in -Instruct).",
    )
