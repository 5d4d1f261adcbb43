"""How a model is loaded into vLLM: its arguments, and why it can't be in one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from gpuserver.config import Settings, set_for_libraries
from gpuserver.errors import OutOfMemory, ProviderUnavailable
from gpuserver.machine.memory import no_memory
from gpuserver.providers.vllm.adapters import Adapters
from gpuserver.providers.vllm.upstream import (
    AsyncEngineArgs,
    LoggingConfig,
    StructuredOutputsConfig,
    current_platform,
)

_CPU_CACHE_MB: Final = 1024
# A step of the engine reads at most this many tokens of prompts, and of a long one, when others
# wait too, no more than its share: nobody's long prompt holds up the words of the rest.
_STEP_TOKENS: Final = 2048
_LONG_PROMPT_TOKENS: Final = 512
_LOG_TAIL: Final = 64 << 10
_CACHE_TOO_SMALL: Final = re.compile(r"KV cache is needed|increas\w+ `?gpu_memory_utilization")
_TOO_LITTLE_MEMORY: Final = re.compile(r"memory .*is less than requested")
_ERROR: Final = re.compile(r"^.*?\b(\w+(?:Error|Exception): .+)$", re.MULTILINE)
_SAYS_NOTHING: Final = "Engine core initialization failed"
_LONGEST_REASON: Final = 200


def arguments(model: Path, adapters: Adapters, settings: Settings, log: Path) -> AsyncEngineArgs:
    """What vLLM is told; `log` is where its processes write. Blocking.

    Raises ProviderUnavailable, and whatever vLLM raises at a model that it can't read.
    """
    on_cpu = _on_cpu(settings)
    if settings.offline:
        set_for_libraries({"HF_HUB_OFFLINE": "1"})
    cache_mb = settings.llm_cache_mb or (_CPU_CACHE_MB if on_cpu else 0)
    out = AsyncEngineArgs(
        model=str(model),
        max_num_seqs=settings.llm_running,
        max_num_batched_tokens=max(_STEP_TOKENS, settings.llm_running),
        tensor_parallel_size=1 if on_cpu else settings.llm_gpus,
        gpu_memory_utilization=settings.llm_gpu_share,
        kv_cache_memory_bytes=cache_mb << 20 or None,
        enable_prefix_caching=True,
        # Compiling for a CPU takes longer than it saves.
        enforce_eager=on_cpu,
        enable_sleep_mode=sleeps(settings),
        disable_log_stats=True,
        reasoning_parser=settings.llm_reasoning,
        structured_outputs_config=StructuredOutputsConfig(
            # A small model may otherwise fill its answer with blanks.
            backend="guidance",
            disable_any_whitespace=True,
        ),
        use_tqdm_on_load=False,
        logging_config=_logging(log),
    )
    if len(adapters):
        out.enable_lora = True
        out.max_loras = out.max_cpu_loras = len(adapters)
        out.max_lora_rank = adapters.rank
    # No longer than the model itself goes.
    out.max_model_len = min(settings.llm_context_tokens, out.create_model_config().max_model_len)
    out.long_prefill_token_threshold = min(_LONG_PROMPT_TOKENS, out.max_model_len)
    out.long_prefill_token_threshold_adaptive = True
    return out


def sleeps(settings: Settings) -> bool:
    """Whether an idle model gives its memory back; on a CPU vLLM only says so."""
    return settings.llm_sleep_seconds > 0 and not current_platform.is_cpu()


def explained(error: Exception, model: str, log: Path) -> ProviderUnavailable:
    """Why a load failed, from the error and from what the engine's processes wrote."""
    text = f"{_tail(log)}\n{type(error).__name__}: {error}"
    device = "CPU" if current_platform.is_cpu() else "GPU"
    if _CACHE_TOO_SMALL.search(text) and not no_memory(error):
        return ProviderUnavailable(
            problem=f"The cache of {model!r} has no room for one conversation.",
            fix="lower LLM_CONTEXT_TOKENS, or raise LLM_CACHE_MB or LLM_GPU_SHARE.",
        )
    if no_memory(RuntimeError(text)) or _TOO_LITTLE_MEMORY.search(text):
        return OutOfMemory(model=f"vllm {model}", device=device)
    reasons = [reason for reason in _ERROR.findall(text) if _SAYS_NOTHING not in reason]
    reason = reasons[-1].strip()[:_LONGEST_REASON].rstrip(".") if reasons else "it gives no reason"
    return ProviderUnavailable(
        problem=f"vLLM can't load the model {model!r}: {reason}.",
        fix=f"choose a model that vLLM supports, or fetch it again; {log} says more.",
    )


def _on_cpu(settings: Settings) -> bool:
    """Whether this build of vLLM computes on the CPU. Raises ProviderUnavailable."""
    on_cpu: bool = current_platform.is_cpu()
    if current_platform.is_unspecified():
        raise ProviderUnavailable(
            problem="vLLM finds no GPU.",
            fix="check nvidia-smi and CUDA_VISIBLE_DEVICES, or set PROFILE=cpu and start again.",
        )
    if on_cpu and settings.device == "cuda":
        raise ProviderUnavailable(
            problem="DEVICE=cuda, but the vLLM installed here computes on the CPU.",
            fix="set PROFILE=gpu and run ./start.sh again, or set DEVICE=auto.",
        )
    return on_cpu


def _logging(log: Path) -> LoggingConfig:
    """Errors go to stderr and warnings to a file of their own, which is begun anew."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    handlers: dict[str, dict[str, Any]] = {
        "stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"},
        "file": {"class": "logging.FileHandler", "filename": str(log), "delay": True},
    }
    handlers["stderr"].update(formatter="plain", level="ERROR")
    handlers["file"].update(formatter="plain", level="WARNING")
    plain = {"format": "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"}
    content = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": plain},
        "handlers": handlers,
        "loggers": {
            "vllm": {"handlers": list(handlers), "level": "WARNING", "propagate": False},
            # Of an engine's death the supervisor tells, in one line.
            "vllm.v1.engine.async_llm": {"level": "CRITICAL"},
        },
    }
    file = log.with_suffix(".json")
    file.write_text(json.dumps(content), encoding="utf-8")
    return LoggingConfig(pylogging_config_file=str(file))


def _tail(log: Path) -> str:
    try:
        return log.read_bytes()[-_LOG_TAIL:].decode(errors="replace")
    except OSError:
        return ""
