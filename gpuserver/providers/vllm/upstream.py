"""What is used of vLLM, imported once its environment is set."""

from __future__ import annotations

from gpuserver import config

# vLLM reads some of this while it is imported; its processes inherit all of it.
config.set_for_libraries(
    {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        # A fork of a server with threads can hang for ever.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
)

from vllm.config import StructuredOutputsConfig  # noqa: E402
from vllm.config.logging import LoggingConfig  # noqa: E402
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.exceptions import VLLMError  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.reasoning import ReasoningParser, ReasoningParserManager  # noqa: E402
from vllm.renderers import ChatParams  # noqa: E402
from vllm.renderers.params import TokenizeParams  # noqa: E402
from vllm.sampling_params import (  # noqa: E402
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402
from vllm.v1.engine.exceptions import EngineDeadError  # noqa: E402

__all__ = [
    "AsyncEngineArgs",
    "AsyncLLM",
    "ChatParams",
    "EngineDeadError",
    "LoRARequest",
    "LoggingConfig",
    "ReasoningParser",
    "ReasoningParserManager",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsConfig",
    "StructuredOutputsParams",
    "TokenizeParams",
    "VLLMError",
    "current_platform",
]
