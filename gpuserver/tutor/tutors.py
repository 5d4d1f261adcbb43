"""Tutors as configuration: who they are, what they know and which models they speak through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gpuserver.errors import ConfigurationError, TutorNotFound
from gpuserver.language import Language
from gpuserver.providers import Kind, RuntimeKey, find

SHIPPED: Final = Path(__file__).parent.parent / "tutors.yaml"

# What `auto` stands for on a machine without a GPU; a tutor or a setting names anything else.
_AUTO: Final[Mapping[Kind, str]] = {
    "llm": "extractive",
    "asr": "pocketsphinx",
    "tts": "espeak",
    "vad": "silero",
    "embeddings": "minilm",
}
_OF_A_TUTOR: Final[tuple[Kind, ...]] = ("llm", "asr", "tts", "vad")
_MAY_BE_NONE: Final = frozenset({"asr", "tts"})


def _voices() -> dict[Language, str]:
    return {"en": "en-us", "zh": "cmn"}


class Engine(BaseModel):
    """A provider and its model, as a tutor names them; empty: the server's setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    provider: str = ""
    model: str = ""


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
    voices: dict[Language, str] = Field(default_factory=_voices)
    """The speech engine's voice for each language it speaks."""
    speed: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    knowledge: tuple[str, ...] = ()
    """Courses it answers from, by name."""
    models: dict[Literal["llm", "asr", "tts"], Engine] = Field(default_factory=dict)

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

    def __init__(
        self,
        file: Path,
        engines: Mapping[str, str],
        overrides: Mapping[int, Mapping[str, str]],
        *,
        refuse_unknown: bool,
        factory: Callable[[RuntimeKey], Any] = find,
    ) -> None:
        """`engines` and `overrides` map `llm_provider`, `llm_model` … to names.

        Raises ConfigurationError with what is wrong in the file, or with a provider it names.
        """
        content = _read(file)
        self._tutors = {tutor.id: tutor for tutor in content.tutors}
        if len(self._tutors) < len(content.tutors):
            raise _bad(file, "two tutors have the same id")
        self._default = content.tutors[0].id if content.default is None else content.default
        if self._default not in self._tutors:
            raise _bad(file, f"the default tutor {self._default} is not listed")
        self.courses = {name: (file.parent / path) for name, path in content.courses.items()}
        for tutor in content.tutors:
            for course in tutor.knowledge:
                if course not in self.courses:
                    raise _bad(file, f"tutor {tutor.id} uses the unlisted course {course!r}")
        self._engines, self._overrides = engines, overrides
        self._refuse_unknown = refuse_unknown
        for tutor_id in {*self._tutors, *overrides}:
            for key in self.runtime_keys(self.resolve(tutor_id)).values():
                factory(key)
        factory(self.embeddings_key)

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
        if tutor_id in self._overrides:
            return self.default.model_copy(update={"id": tutor_id})
        if self._refuse_unknown:
            raise TutorNotFound(tutor_id=tutor_id)
        return self.default

    def runtime_keys(self, tutor: Tutor) -> dict[Kind, RuntimeKey]:
        """Which runtime a tutor uses for each kind; a kind switched off is absent."""
        keys = {kind: self._key(kind, tutor) for kind in _OF_A_TUTOR}
        return {kind: key for kind, key in keys.items() if key.provider != "none"}

    @property
    def embeddings_key(self) -> RuntimeKey:
        """The embeddings of the whole server: courses are shared between tutors."""
        return self._key("embeddings", self.default)

    def _key(self, kind: Kind, tutor: Tutor) -> RuntimeKey:
        own = next((e for k, e in tutor.models.items() if k == kind), Engine())
        override = self._overrides.get(tutor.id, {})

        def pick(what: str, of_tutor: str) -> str:
            name = f"{kind}_{what}"
            return override.get(name) or of_tutor or self._engines.get(name, "")

        provider = pick("provider", own.provider)
        if provider in {"", "auto"} or (provider == "none" and kind not in _MAY_BE_NONE):
            provider = _AUTO[kind]
        return RuntimeKey(kind, provider, pick("model", own.model))


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
