"""Tutors as configuration: who they are, what they know and which models they speak through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gpuserver.config import Settings
from gpuserver.errors import ConfigurationError, TutorNotFound
from gpuserver.knowledge.info import is_id, is_reserved
from gpuserver.language import Language
from gpuserver.providers import Kind, RuntimeKey, Sampling
from gpuserver.providers.table import find

SHIPPED: Final = Path(__file__).parent.parent / "tutors.yaml"

# What `auto` stands for, without and with a model that is named for it.
_EMBEDDED: Final[Mapping[Kind, str]] = {
    "llm": "extractive",
    "asr": "pocketsphinx",
    "tts": "espeak",
    "vad": "silero",
    "embeddings": "minilm",
    "index": "numpy",
    "reranker": "none",
}
_LARGE: Final[Mapping[Kind, str]] = {
    "llm": "vllm",
    "asr": "faster-whisper",
    "tts": "coqui",
    "vad": "silero",
    "embeddings": "sentence-transformers",
    "index": "numpy",
    "reranker": "sentence-transformers",
}
_TAKES_NO_MODEL: Final = frozenset({"extractive", "silero", "numpy"})
_MAY_BE_NONE: Final = frozenset({"asr", "tts", "reranker"})


class Engine(BaseModel):
    """A provider and its model, as a tutor names them; empty: the server's setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    provider: str = ""
    model: str = ""


_UNNAMED: Final = Engine()


class ChatEngine(Engine):
    """A chat model of a tutor's."""

    adapter: str = ""
    """Folder of a LoRA adapter for the model, relative to the tutors file."""
    fallback: tuple[Engine, ...] | None = None
    """What answers, in this order, when the model can't; left out: the server's setting."""


class Engines(BaseModel):
    """What a tutor speaks through, where it is not what the settings say."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    llm: ChatEngine = ChatEngine()
    asr: Engine = Engine()
    tts: Engine = Engine()


class Choosing(BaseModel):
    """How a tutor's chat model chooses its words."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1, le=32_768)] = 512
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=8)] = ()

    def sampling(self) -> Sampling:
        return Sampling(**self.model_dump())


class Tutor(BaseModel):
    """One tutor of `tutors.yaml`. Texts that students see may differ by language."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Annotated[int, Field(ge=0)]
    name: Annotated[str, Field(min_length=1, max_length=80)]
    language: Language = "en"
    """The language it greets in and falls back to; it answers in the language of the question."""
    persona: Annotated[str, Field(max_length=4000)] = ""
    """Who the tutor is, as a chat model is told."""
    greeting: dict[Language, str] = Field(default_factory=dict)
    voices: dict[Language, str] = Field(default_factory=dict)
    """The speech engine's voice for each language it speaks; left out: the engine's own."""
    speed: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    knowledge: tuple[str, ...] = ()
    """What it answers from: listed courses by name, uploaded knowledge bases by id. One that there
    is not (yet) holds nothing."""
    models: Engines = Engines()
    sampling: Choosing = Choosing()
    outside: Literal["decline", "general"] = "decline"
    """What a chat model does with a question that no passage covers: nothing, or answer from what
    it knows by itself, which the student is told first."""
    show_thoughts: bool = False
    """Whether students see what a reasoning model thinks before it answers."""

    @field_validator("greeting", "voices", mode="before")
    @classmethod
    def _by_language(cls, value: object, info: Any) -> object:
        """One string is meant for the tutor's own language."""
        return {info.data.get("language", "en"): value} if isinstance(value, str) else value

    def greet(self) -> str:
        """The words that welcome a student."""
        default = {
            "en": f"Hello! I am {self.name}. What would you like to know?",
            "zh": f"你好！我是{self.name}。你想了解什么？",
        }
        return self.greeting.get(self.language, default[self.language])


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default: int | None = None
    courses: dict[str, Path] = Field(default_factory=dict)
    tutors: Annotated[list[Tutor], Field(min_length=1)]


class Catalogue:
    """The tutors of one file and the settings that apply where a tutor names no engine."""

    def __init__(self, settings: Settings, factory: Callable[[RuntimeKey], Any] = find) -> None:
        """Raises ConfigurationError with what is wrong in the file, or with a provider it names."""
        self._settings = settings
        file = settings.tutors_file or SHIPPED
        content = _read(file)
        self._folder = file.parent.resolve()
        self._tutors = {tutor.id: tutor for tutor in content.tutors}
        if len(self._tutors) < len(content.tutors):
            raise _bad(file, "two tutors have the same id")
        self._default = content.tutors[0].id if content.default is None else content.default
        if self._default not in self._tutors:
            raise _bad(file, f"the default tutor {self._default} is not listed")
        self.courses = {name: (file.parent / path) for name, path in content.courses.items()}
        for name in filter(is_reserved, self.courses):
            raise _bad(file, f"no course can be called {name!r}, as a part of the API is")
        for tutor in content.tutors:
            for course in tutor.knowledge:
                if course not in self.courses and not is_id(course):
                    problem = f"{course!r} is neither a listed course nor a knowledge base's id"
                    raise _bad(file, f"tutor {tutor.id}: {problem}")
        ids = {*self._tutors, *settings.tutor_overrides}
        self._adapters = self._adapters_of([self.resolve(tutor_id) for tutor_id in ids])
        for tutor_id in ids:
            tutor = self.resolve(tutor_id)
            for key in (*self.runtime_keys(tutor).values(), *self.fallback_keys(tutor)):
                factory(key)
        for key in self.shared_keys.values():
            factory(key)

    def __iter__(self) -> Iterator[Tutor]:
        return iter(self._tutors.values())

    @property
    def default(self) -> Tutor:
        return self._tutors[self._default]

    def resolve(self, tutor_id: int) -> Tutor:
        """The tutor for an id; an unlisted one is the default tutor, or raises TutorNotFound.

        An id that only the environment names (TUTOR_7_LLM_MODEL) is the default tutor with that id.
        """
        if tutor_id in self._tutors:
            return self._tutors[tutor_id]
        if tutor_id in self._settings.tutor_overrides:
            return self.default.model_copy(update={"id": tutor_id})
        if self._settings.unknown_tutor == "refuse":
            raise TutorNotFound(tutor_id=tutor_id)
        return self.default

    def runtime_keys(self, tutor: Tutor) -> dict[Kind, RuntimeKey]:
        """Which runtime a tutor uses for each kind; a kind switched off is absent."""
        own = tutor.models
        keys = (
            self._with_adapters(self._key("llm", own.llm, tutor.id)),
            self._key("asr", own.asr, tutor.id),
            self._key("tts", own.tts, tutor.id),
            self._key("vad"),
        )
        return {key.kind: key for key in keys if key.provider != "none"}

    def fallback_keys(self, tutor: Tutor) -> tuple[RuntimeKey, ...]:
        """The chat models that answer, in this order, when the tutor's own can't."""
        chain = tutor.models.llm.fallback
        if chain is None:
            chain = tuple(Engine(provider=name) for name in self._settings.llm_fallback)
        keys = (self._with_adapters(self._key("llm", engine)) for engine in chain)
        first = self.runtime_keys(tutor)["llm"]
        return tuple(key for key in dict.fromkeys(keys) if key != first)

    def adapter(self, tutor: Tutor) -> str:
        """The folder of the tutor's LoRA adapter, "" for none."""
        adapter = tutor.models.llm.adapter
        return str(self._folder / adapter) if adapter else ""

    @property
    def embeddings_key(self) -> RuntimeKey:
        """The embeddings of the whole server: courses are shared between tutors."""
        return self._key("embeddings")

    @property
    def index_key(self) -> RuntimeKey:
        """What searches the vectors of all courses."""
        return self._key("index")

    @property
    def reranker_key(self) -> RuntimeKey | None:
        """What reads the best passages of all courses again; None: nothing does."""
        key = self._key("reranker")
        return None if key.provider == "none" else key

    @property
    def shared_keys(self) -> dict[Kind, RuntimeKey]:
        """All that courses are searched with, whichever tutor asks."""
        keys = (self.embeddings_key, self.index_key, self.reranker_key)
        return {key.kind: key for key in keys if key is not None}

    def _key(self, kind: Kind, own: Engine = _UNNAMED, tutor_id: int | None = None) -> RuntimeKey:
        override = {} if tutor_id is None else self._settings.tutor_overrides.get(tutor_id, {})
        usual_name = getattr(self._settings, f"{kind}_provider", "")
        usual_model = getattr(self._settings, f"{kind}_model", "")
        name = override.get(f"{kind}_provider") or own.provider or usual_name
        model = override.get(f"{kind}_model") or own.model
        provider = self._provider(kind, name, model or usual_model)
        if not model and provider == self._provider(kind, usual_name, usual_model):
            # Of another provider than the settings name, their model says nothing.
            model = usual_model
        return RuntimeKey(kind, provider, "" if provider in _TAKES_NO_MODEL else model)

    def _provider(self, kind: Kind, name: str, model: str) -> str:
        """The provider by its name, or what `auto` stands for here with a model of that name."""
        if name not in {"", "auto"} and (name != "none" or kind in _MAY_BE_NONE):
            return name
        if kind == "llm" and self._settings.llm_base_url:
            return "openai"
        # Where nothing small can stand in, a model that is named is wanted whatever the profile.
        can = self._settings.profile != "embedded" or _EMBEDDED[kind] == "none"
        return (_LARGE if model and can else _EMBEDDED)[kind]

    def _adapters_of(self, tutors: Iterable[Tutor]) -> dict[RuntimeKey, tuple[str, ...]]:
        """The adapters of all tutors on one model: loaded once, it has room for each."""
        found: dict[RuntimeKey, set[str]] = {}
        for tutor in tutors:
            if tutor.models.llm.adapter:
                key = self._key("llm", tutor.models.llm, tutor.id)
                found.setdefault(key, set()).add(self.adapter(tutor))
        return {key: tuple(sorted(adapters)) for key, adapters in found.items()}

    def _with_adapters(self, key: RuntimeKey) -> RuntimeKey:
        return replace(key, adapters=self._adapters.get(key, ()))


def _read(file: Path) -> _File:
    try:
        return _File.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise _bad(file, f"it can't be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _bad(file, f"it is not valid YAML ({str(error).splitlines()[0]})") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise _bad(file, f"{where}: {first['msg'].lower()}") from error


def _bad(file: Path, problem: str) -> ConfigurationError:
    return ConfigurationError(
        problem=f"The tutors file {file.name} is wrong: {problem}.",
        fix="correct it (docs/configuration.md shows the format), or unset TUTORS_FILE.",
    )
