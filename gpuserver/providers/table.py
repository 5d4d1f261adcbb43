"""Where each provider lives, and how it is found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

from gpuserver.errors import ProviderUnavailable
from gpuserver.providers import Kind, RuntimeKey

# name → "module:Class". Heavy libraries are imported by their own file, when it is first needed.
PROVIDERS: Final[Mapping[Kind, Mapping[str, str]]] = {
    "llm": {
        "extractive": "gpuserver.providers.extractive:ExtractiveLLM",
        "vllm": "gpuserver.providers.vllm:VllmLLM",
        "openai": "gpuserver.providers.openai:OpenAILLM",
    },
    "asr": {
        "pocketsphinx": "gpuserver.providers.pocketsphinx:PocketsphinxASR",
        "faster-whisper": "gpuserver.providers.faster_whisper:FasterWhisperASR",
    },
    "tts": {
        "espeak": "gpuserver.providers.espeak:EspeakTTS",
        "coqui": "gpuserver.providers.coqui:CoquiTTS",
    },
    "vad": {"silero": "gpuserver.providers.silero:SileroVAD"},
    "embeddings": {
        "minilm": "gpuserver.providers.minilm:MiniLMEmbeddings",
        "sentence-transformers": (
            "gpuserver.providers.sentence_transformers:SentenceTransformersEmbeddings"
        ),
    },
    "index": {
        "numpy": "gpuserver.providers.numpy:NumpyIndex",
        "faiss": "gpuserver.providers.faiss:FaissIndex",
    },
    "reranker": {
        "sentence-transformers": "gpuserver.providers.cross_encoder:CrossEncoderReranker",
    },
}


def find(key: RuntimeKey) -> Any:
    """The provider class for a key. Raises ProviderUnavailable, naming what is there instead."""
    known = PROVIDERS[key.kind]
    if key.provider not in known:
        raise ProviderUnavailable(
            problem=f"There is no {key.kind} provider named {key.provider!r}.",
            fix=f"set {key.kind.upper()}_PROVIDER to one of: auto, {', '.join(known)}.",
        )
    module, _, name = known[key.provider].partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    # A library whose native part can't be loaded raises OSError.
    except (ImportError, OSError) as error:
        raise ProviderUnavailable(
            problem=f"The {key.kind} provider {key.provider!r} lacks a library: {error}.",
            fix="run ./start.sh with the PROFILE that has it (docs/engines.md).",
        ) from error
