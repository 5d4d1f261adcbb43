"""All settings: from the environment, then `.env`; nobody else reads the environment."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from gpuserver.errors import ConfigurationError

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
TUTOR_OVERRIDE: Final = re.compile(
    r"TUTOR_(?P<tutor>\d+)_(?P<kind>LLM|ASR|TTS)_(?P<what>MODEL|PROVIDER)"
)
"""Per-tutor settings in the environment, for example TUTOR_7_LLM_MODEL."""

_RETIRED: Final = {
    "WEBSOCKET_HOST": "the WebSocket is served on MANAGEMENT_API_HOST",
    "WEBSOCKET_PORT": "the WebSocket is served on MANAGEMENT_API_PORT",
}
# Read by CUDA itself; known here so that an old .env raises no warning.
_FOREIGN: Final = frozenset({"CUDA_VISIBLE_DEVICES"})

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86_400)]


class Settings(BaseSettings):
    """One attribute a setting; its upper-case name is the name in the environment."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    # Where the server listens

    management_api_host: str = "127.0.0.1"
    """Address to listen on. The default is reached from this machine only."""
    management_api_port: Annotated[int, Field(ge=0, le=65_535)] = 9000
    """Port of every door: management API, WebSocket and pages."""
    websocket_url: str = ""
    """Public base of `engine_url`, such as `wss://tutor.example`; empty: from the request."""
    data_dir: Path = Path("data")
    """Folder for state, logs, the pid file and caches."""

    # Who may use it

    management_api_key: str = ""
    """Key for the management API. Needed as soon as the server can be reached from elsewhere."""
    allow_open_management: bool = False
    """Start without a key although the server can be reached from elsewhere."""
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ("*",)
    """Web origins, comma-separated, whose pages may open the WebSocket; `*`: any with a token."""

    # Sessions

    max_sessions: Count = 10
    """Sessions at the same time."""
    session_timeout_seconds: Seconds = 3600
    """A session unused for this long ends."""
    unknown_tutor: Literal["default", "refuse"] = "default"
    """A tutor_id that is not listed gets the default tutor, or a 404."""
    unknown_knowledge_base: Literal["accept", "refuse"] = "accept"
    """A kb_id that is not known is accepted and the student told, or a 404."""

    # Tutors and engines

    tutors_file: Path | None = None
    """A `tutors.yaml` of your own; empty: the tutors that ship with the product."""
    profile: Literal["embedded", "cpu", "gpu"] = "embedded"
    """What `auto` stands for below, and what `./start.sh` installs (docs/engines.md)."""
    llm_provider: str = "auto"
    """What answers: `auto`, `extractive`, `vllm` or `openai`."""
    llm_model: str = ""
    """Chat model: a folder or a hub name, or the name it has on the `openai` server."""
    llm_fallback: Annotated[tuple[str, ...], NoDecode] = ()
    """What answers, in this order, when the first can't: for example `openai,extractive`."""
    llm_base_url: str = ""
    """An OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`; with `auto` it answers."""
    llm_api_key: SecretStr = SecretStr("")
    """Key for that server."""
    asr_provider: str = "auto"
    """What recognises speech: `auto`, `pocketsphinx`, `faster-whisper` or `none`."""
    asr_model: str = ""
    """Recognition model: a folder, a size such as `small`, or a hub name."""
    tts_provider: str = "auto"
    """What speaks: `auto`, `espeak`, `coqui` or `none`."""
    tts_model: str = ""
    """Voice model: a folder, or a name such as `tts_models/en/ljspeech/vits`."""
    embeddings_provider: str = "auto"
    """What compares by meaning: `auto`, `minilm` or `sentence-transformers`."""
    embeddings_model: str = ""
    """Sentence-embedding model: a folder or a hub name."""
    index_provider: str = "auto"
    """What searches the course's vectors: `auto`, `numpy` or `faiss`."""
    reranker_provider: str = "auto"
    """What reads the best passages again: `auto`, `none` or `sentence-transformers`."""
    reranker_model: str = ""
    """Cross-encoder that judges whether a passage answers a question: a folder or a hub name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where recognition, speech and retrieval run; `auto`: on a GPU if there is one."""
    offline: bool = False
    """Never ask a model hub: models are folders, or were pulled before."""
    models_dir: Path | None = None
    """Where pulled models lie; empty: `DATA_DIR/models`."""
    asr_workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Recogniser processes: how many students can be recognised at the same moment."""
    engine_cache_size: Count = 16
    """Tutors kept ready while nobody uses them; those in use are never dropped."""

    # Large models

    llm_context_tokens: Annotated[int, Field(ge=256, le=1 << 20)] = 8192
    """Longest prompt and answer together; a longer conversation is cut at its beginning."""
    llm_running: Count = 32
    """Questions that a chat model answers at the same moment."""
    llm_waiting: Annotated[int, Field(ge=0, le=10_000)] = 64
    """Questions that may wait for it behind those; one more is told that it is busy."""
    llm_gpus: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs that one `vllm` model is spread over."""
    llm_gpu_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of each of these GPUs' memory for a `vllm` model and its cache."""
    llm_cache_mb: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Cache of a `vllm` model; 0: what the share leaves, or 1024 on a CPU."""
    llm_reasoning: str = ""
    """vLLM's parser for a model that thinks aloud, such as `qwen3` or `deepseek_r1`."""
    llm_sleep_seconds: Annotated[float, Field(ge=0, le=30 * 86_400)] = 0
    """A `vllm` model unused for this long frees its GPU memory until it is asked; 0: never."""
    asr_precision: Literal["auto", "float32", "float16", "int8", "int8_float16"] = "auto"
    """Arithmetic of `faster-whisper`; `auto`: float16 on a GPU, int8 on a CPU."""
    asr_batch: Annotated[int, Field(ge=1, le=64)] = 8
    """Utterances of different students that `faster-whisper` recognises together."""
    asr_detect_language: bool = False
    """`faster-whisper` finds out which language is spoken instead of expecting the tutor's."""
    gpu_memory_mb: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    """Memory of each GPU that this server may use; 0: all that is free."""

    # Limits

    max_text_chars: Count = 4000
    """Longest typed question, in characters."""
    max_audio_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """Longest spoken question."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=256 << 20)] = 8 << 20
    """Largest WebSocket message."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=256 << 20)] = 64 << 10
    """Largest body of an HTTP request."""
    max_messages_per_second: Annotated[int, Field(ge=60, le=10_000)] = 200
    """Messages that a client may send; the server does not read faster than that."""
    max_answer_chars: Annotated[int, Field(ge=1, le=100_000_000)] = 20_000
    """Longest answer, in characters; one that grows beyond it is stopped."""
    max_waiting_questions: Annotated[int, Field(ge=1, le=100)] = 4
    """Questions a student may have waiting behind the one being answered."""
    max_connections: Count = 500
    """Connections at the same time, of every kind."""
    history_turns: Annotated[int, Field(ge=0, le=100)] = 8
    """Questions and answers of a session that the tutor remembers."""
    first_token_timeout_seconds: Seconds = 30
    """A model that has not begun to answer after this long has failed."""
    token_timeout_seconds: Seconds = 15
    """A model that pauses for this long within an answer has failed."""
    turn_timeout_seconds: Seconds = 120
    """A turn that takes longer is stopped and the student told."""
    send_timeout_seconds: Seconds = 20
    """A client that reads nothing for this long is disconnected."""
    shutdown_grace_seconds: Seconds = 5
    """Time to finish what is running when the server is stopped."""

    # Course material

    max_upload_mb: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Largest document, or zip of documents, in megabytes."""
    max_documents: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """Documents in one knowledge base."""
    max_pages: Annotated[int, Field(ge=1, le=100_000)] = 5000
    """Pages, or slides, of one document."""
    indexing_seconds: Seconds = 600
    """Reading one document may take this long."""
    indexing_memory_mb: Annotated[int, Field(ge=256, le=1 << 16)] = 1024
    """Memory of the process that reads a document."""

    # Speaking and being interrupted

    speech_lead_ms: Annotated[int, Field(ge=100, le=5000)] = 300
    """How far ahead of real time speech is sent, in milliseconds."""
    end_of_turn_seconds: Annotated[float, Field(ge=0.3, le=0.8)] = 0.5
    """Silence that ends a spoken question whose words look finished."""
    unfinished_turn_seconds: Annotated[float, Field(ge=0.8, le=2.5)] = 1.6
    """Silence that ends a spoken question whose words don't."""
    barge_in_seconds: Annotated[float, Field(ge=0.1, le=5)] = 0.5
    """Speech of this length during an answer can interrupt it."""
    barge_in_confidence: Annotated[float, Field(ge=0, le=1)] = 0.35
    """How sure the recogniser must be of words that interrupt, from 0 to 1."""
    barge_in_wait_seconds: Annotated[float, Field(ge=0.5, le=10)] = 2
    """An answer paused for speech that turns out to be none goes on after this long at most."""
    barge_in_grace_seconds: Annotated[float, Field(ge=0, le=10)] = 1
    """The first answer of a session can't be interrupted by voice for this long."""
    question_during_answer: Literal["queue", "replace"] = "queue"
    """A question asked during an answer (tutor.v2): it waits, or it interrupts the answer."""

    # Coming back

    resume_grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 30
    """How long an answer goes on while its student's connection is lost (tutor.v2)."""
    resume_audio_seconds: Annotated[int, Field(ge=0, le=600)] = 60
    """Speech kept for each session for a client that comes back."""
    resume_audio_mb: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Speech kept for all sessions together, in megabytes."""
    resume_events: Annotated[int, Field(ge=100, le=1_000_000)] = 20_000
    """Messages kept for each session, speech apart."""

    # Logging

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """How much is logged. Logs carry ids, never pupils' words."""
    log_format: Literal["console", "json"] = "console"
    """For people or for machines."""

    tutor_overrides: dict[int, dict[str, str]] = Field(default_factory=dict, exclude=True)
    """From TUTOR_<id>_<KIND>_<MODEL|PROVIDER>: tutor id → {"llm_model": …}."""

    @field_validator("allowed_origins", "llm_fallback", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
        return value

    @field_validator("llm_base_url")
    @classmethod
    def _http_base(cls, value: str) -> str:
        value = value.strip().rstrip("/")
        parts = urlsplit(value)
        if value and (parts.scheme not in {"http", "https"} or not parts.hostname):
            raise ValueError("must look like http://host:port/v1 or https://host/v1")
        if parts.username or parts.password:
            raise ValueError("must not hold a key: that is LLM_API_KEY")
        return value

    @field_validator("websocket_url")
    @classmethod
    def _socket_base(cls, value: str) -> str:
        value = value.strip().rstrip("/")
        parts = urlsplit(value)
        if value and (parts.scheme not in {"ws", "wss"} or not parts.hostname or parts.query):
            raise ValueError("must look like ws://host:port or wss://host")
        return value

    @field_validator("management_api_key")
    @classmethod
    def _sendable(cls, value: str) -> str:
        if not re.fullmatch(r"[!-~]*", value):
            raise ValueError(
                "it travels in a header: use ASCII letters, digits and signs, no spaces"
            )
        return value

    @model_validator(mode="after")
    def _key_when_public(self) -> Self:
        if self.is_public and not self.management_api_key and not self.allow_open_management:
            raise ValueError(
                "MANAGEMENT_API_KEY is needed because MANAGEMENT_API_HOST or WEBSOCKET_URL can be "
                "reached from other machines; set a long random key, or ALLOW_OPEN_MANAGEMENT=true"
            )
        return self

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach the server, directly or through a tunnel."""
        public_host = urlsplit(self.websocket_url).hostname
        hosts = {self.management_api_host} | ({public_host} if public_host else set())
        return not hosts <= LOOPBACK

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings


DEFAULTS: Final = Settings.model_construct()
"""Every setting as it is where nobody set it; the environment is not read."""


def visible_gpus() -> str | None:
    """The GPUs that CUDA shows this process, as it is told them; None: all of them."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def set_for_libraries(values: Mapping[str, str]) -> None:
    """Set what a library and its processes read from the environment; an operator's own values
    stay."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def load(env_file: Path | None = Path(".env"), **given: Any) -> tuple[Settings, list[str]]:
    """The settings, and a warning for each name that looks like ours and is not known.

    `given` (by attribute name) beats the environment, which beats `env_file`.
    Raises ConfigurationError with one sentence that names the setting and the fix.
    """
    file_values = {k: v or "" for k, v in dotenv_values(env_file).items()} if env_file else {}
    everything = {**file_values, **os.environ}
    try:
        # The file's name is an argument of pydantic-settings' constructor, not a field.
        settings = Settings(
            _env_file=env_file, **{"tutor_overrides": _overrides(everything), **given}
        )
    except ValidationError as error:
        raise _explained(error) from None
    return settings, _warnings(file_values, os.environ)


def _explained(error: ValidationError) -> ConfigurationError:
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        problem, _, fix = message.partition("; ")
        return ConfigurationError(problem=f"{problem}.", fix=f"{fix}.")
    name = str(first["loc"][0]).upper()
    return ConfigurationError(
        problem=f"The setting {name} has a bad value: {message[:1].lower()}{message[1:]}.",
        fix=f"correct {name} in the environment or in .env (docs/configuration.md).",
    )


def _overrides(values: Mapping[str, str]) -> dict[int, dict[str, str]]:
    out: dict[int, dict[str, str]] = {}
    for name, value in values.items():
        match = TUTOR_OVERRIDE.fullmatch(name.upper())
        if match and value:
            key = f"{match['kind']}_{match['what']}".lower()
            out.setdefault(int(match["tutor"]), {})[key] = value
    return out


def _warnings(file_values: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """Warn of every unknown name in the file, and of those in the environment close to one of ours.

    The environment is full of other programs' names, so only near misses count there.
    """
    known = _known()
    out = []
    for name in dict.fromkeys([*file_values, *environment]):
        upper = name.upper()
        if upper in _RETIRED:
            out.append(f"{name} is no longer used: {_RETIRED[upper]}.")
        elif upper not in known | _FOREIGN and not TUTOR_OVERRIDE.fullmatch(upper):
            if near := _nearest(upper):
                out.append(f"{name} is not a setting of gpuserver; did you mean {near}?")
            elif name in file_values or upper.startswith("TUTOR_"):
                out.append(f"{name} in .env is not a setting of gpuserver and is ignored.")
    return out


def _known() -> set[str]:
    return {name.upper() for name in Settings.model_fields} - {"TUTOR_OVERRIDES"}


@lru_cache(maxsize=512)  # Comparing costs a millisecond a name.
def _nearest(name: str) -> str | None:
    """The setting that a name is a near miss of."""
    return next(iter(difflib.get_close_matches(name, _known(), n=1, cutoff=0.8)), None)
