"""Why a model can't be loaded, in one sentence with the fix, from what vLLM writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuserver.errors import OutOfMemory, ProviderUnavailable
from gpuserver.providers.vllm.loading import explained

NOTHING = RuntimeError("Engine core initialization failed. See root cause above. Failed: {}")


@pytest.mark.parametrize(
    ("written", "kind", "words"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.",
            OutOfMemory,
            "LLM_GPU_SHARE",
        ),
        (
            "ValueError: Free memory on device cuda:0 (1/80 GiB) on startup is less than desired",
            OutOfMemory,
            "LLM_GPU_SHARE",
        ),
        (
            "ValueError: Available memory on node 0 (10/14 GiB) on kv cache allocation is less "
            "than requested memory for kv (512.0 GiB).",
            OutOfMemory,
            "LLM_CACHE_MB",
        ),
        (
            "ValueError: To serve at least one request with the model's max seq len (8192), "
            "2.0 GiB KV cache is needed, which is larger than the available KV cache memory.",
            ProviderUnavailable,
            "LLM_CONTEXT_TOKENS",
        ),
        (
            "ERROR EngineCore: failed\nValueError: Unknown quantization method: x.",
            ProviderUnavailable,
            "Unknown quantization method: x. Fix",
        ),
        ("", ProviderUnavailable, "gives no reason"),
    ],
)
def test_the_reason_is_told_with_the_fix(
    tmp_path: Path, written: str, kind: type[ProviderUnavailable], words: str
) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(f"a line before\n{written}\n", encoding="utf-8")
    error = explained(NOTHING, "school/model", log)
    assert type(error) is kind
    assert words in error.sentence("en")
    assert "school/model" in error.sentence("zh")


def test_a_log_that_is_not_there_is_done_without(tmp_path: Path) -> None:
    error = explained(ValueError("no such architecture"), "school/model", tmp_path / "none")
    assert "no such architecture" in error.sentence("en")
