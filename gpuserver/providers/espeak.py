"""Speech by espeak-ng, English and Mandarin, with the times of its words and mouth shapes.

espeak-ng is free software under the GPL, version 3: it is loaded only in a process of its own,
which talks to the server over a pipe.
"""

from __future__ import annotations

import ctypes
import os
import re
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final

import espeakng_loader
import numpy as np

from gpuserver.errors import ConfigurationError, ProviderUnavailable
from gpuserver.language import Language
from gpuserver.providers import Place, Speech, Status, Viseme, VisemeMark, WordTime
from gpuserver.providers.spoken_clauses import EDGES, TOKEN, portions
from gpuserver.providers.visemes import CLOSED, changes, of_ipa
from gpuserver.providers.worker import Cancelled, Checkpoint, Worker

_SAMPLE_RATE: Final = 22_050  # of all its voices
_ALIASES: Final = {"en": "en-us", "zh": "cmn", "zh-cn": "cmn", "zh-hans": "cmn", "zh-hk": "yue"}
_WORDS_A_MINUTE: Final = 165
_SPEEDS: Final = (0.5, 2.0)
_MAX_CHARACTERS: Final = 500
_PAUSE_MS: Final = 80
_SPEAK_SECONDS: Final = 15.0
_PRONOUNCE_SECONDS: Final = 60.0

_AUDIBLE: Final = 50  # of 32,767
_SILENT_FROM_MS: Final = 50


class EspeakTTS:
    """The embedded voice. `model` is the English voice where a tutor names none."""

    sample_rate: int = _SAMPLE_RATE

    def __init__(self, model: str, place: Place) -> None:
        self.voices: Mapping[Language, str] = {"en": model or "en-us", "zh": "cmn"}
        self._worker: Worker | None = None

    def load(self) -> None:
        """Blocking. Raises ProviderUnavailable."""
        self._worker = Worker("espeak", Espeak, Path(espeakng_loader.get_data_path()))
        self._worker.start()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    async def speak(
        self, clause: str, language: Language, voice: str, speed: float
    ) -> AsyncIterator[Speech]:
        """The clause as PCM16 at 22,050 Hz, in one piece unless it is very long.

        `voice` is a language tag or an espeak voice (`en-us`, `en-gb`, `cmn`, `en-us+f3`); a
        speed of 1.0 is 165 words a minute. A clause with nothing to say yields nothing. Raises
        EngineFailed, and ConfigurationError for a voice that does not exist.
        """
        rate = round(_WORDS_A_MINUTE * min(max(speed, _SPEEDS[0]), _SPEEDS[1]))
        for text in portions(clause, _MAX_CHARACTERS):
            speech: Speech | None = await self._loaded.call(
                "speak", text, voice or self.voices[language], rate, deadline=_SPEAK_SECONDS
            )
            if speech is not None:
                yield speech

    async def pronounce(self, words: Sequence[str]) -> Mapping[str, str]:
        """American IPA of each English word; words without Latin letters or digits are left out."""
        ipa: dict[str, str] = await self._loaded.call(
            "pronounce", tuple(words), deadline=_PRONOUNCE_SECONDS
        )
        return ipa

    def status(self) -> Status:
        return self._loaded.status()

    async def probe(self) -> None:
        """A syllable, for nobody. Raises EngineFailed."""
        async for _ in self.speak("a", "en", "", 1.0):
            pass

    @property
    def _loaded(self) -> Worker:
        assert self._worker is not None, "load() comes first"
        return self._worker


# In the child


@dataclass(frozen=True, slots=True)
class _Mark:
    """A word or phoneme begins at `ms`; `at` is the word's offset in the text, in characters."""

    ms: int
    ipa: str = ""
    at: int = -1


class _EventId(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


class _Voice(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
# From speak_lib.h
_SYNCHRONOUS: Final = 2
_PHONEME_EVENTS_IN_IPA_AND_DONT_EXIT: Final = 0x0001 | 0x0002 | 0x8000
_WORD_EVENT: Final = 1
_PHONEME_EVENT: Final = 7
_RATE: Final = 1
_UTF8: Final = 1
_IPA: Final = 0x02
_BUFFER_MS: Final = 200


class Espeak:
    """The library, in the child: its state is global, so one of these a process."""

    def __init__(self, data: Path, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._library = _library()
        self._data = data
        # The library holds at most 160 characters of a path; from inside the folder "." will do.
        os.chdir(self._data)
        self._rate = self._library.espeak_Initialize(
            _SYNCHRONOUS, _BUFFER_MS, b".", _PHONEME_EVENTS_IN_IPA_AND_DONT_EXIT
        )
        if self._rate <= 0:
            raise ProviderUnavailable(
                problem=f"espeak-ng can't read its data in {self._data}.",
                fix="run ./start.sh again, which installs it.",
            )
        self._voices = self._voice_list()
        self._pcm = bytearray()
        self._words: list[_Mark] = []
        self._phonemes: list[_Mark] = []
        self._stopped: BaseException | None = None
        self._callback = _Callback(self._on_audio)  # C keeps only the bare pointer
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: str, rate: int) -> Speech | None:
        """The text as speech; None when there is nothing in it to say."""
        # A control character would be read as a command to the synthesiser, or end the text.
        text = re.sub(r"[\x00-\x1f\x7f]", " ", text).encode("utf-8", "replace").decode()
        self._choose(voice)
        if not re.search(r"\w", text):  # espeak would read "!!!" out, sign by sign
            return None
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._pcm.clear()
        self._words.clear()
        self._phonemes.clear()
        self._stopped = None
        data = text.encode() + b"\0"
        failed = self._library.espeak_Synth(data, len(data), 0, 1, 0, _UTF8, None, None)
        if self._stopped is not None:
            raise self._stopped
        if failed:
            raise RuntimeError("espeak_Synth")
        if not any(mark.ipa for mark in self._phonemes):
            return None
        pcm, end_ms = _ended(bytes(self._pcm), self._rate)
        words = tuple(word_times(text, self._words, self._phonemes, end_ms))
        marks = tuple(visemes(self._phonemes, end_ms))
        return Speech(pcm, self._rate, words, marks)

    def pronounce(self, words: Sequence[str]) -> dict[str, str]:
        self._choose("en-us")
        found: dict[str, str] = {}
        for word in words:
            self._checkpoint()
            if re.search(r"[A-Za-z0-9]", word) and (ipa := self._ipa(word.replace("\0", ""))):
                found[word] = ipa
        return found

    def _ipa(self, word: str) -> str:
        buffer = ctypes.create_string_buffer(word.encode("utf-8", "replace"))
        rest = ctypes.c_void_p(ctypes.addressof(buffer))
        parts: list[str] = []
        while rest.value:
            part = self._library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA)
            parts.append((part or b"").decode())
        return " ".join(filter(None, parts))

    def _choose(self, voice: str) -> None:
        base, plus, variant = voice.strip().partition("+")
        tag = base.lower().replace("_", "-")
        name = self._voices.get(_ALIASES.get(tag, tag))
        variants = self._data / "voices" / "!v"
        if name is None or (plus and variant not in os.listdir(variants)):
            raise ConfigurationError(
                problem=f"The speech engine has no voice {voice!r}.",
                fix="choose a language tag such as en-us, en-gb or cmn, or one with a variant, "
                "such as en-us+f3.",
            )
        self._library.espeak_SetVoiceByName(f"{name}{plus}{variant}".encode())

    def _voice_list(self) -> dict[str, str]:
        """Identifiers by language tag and by themselves: espeak takes no tag but by luck."""
        found: dict[str, tuple[int, str]] = {}
        listed = self._library.espeak_ListVoices(None)
        for index in range(10_000):
            if not listed[index]:
                break
            voice = listed[index].contents
            identifier = voice.identifier.decode("utf-8", "replace")
            found[identifier.lower()] = (0, identifier)
            for priority, tag in _languages(voice.languages):
                if tag not in found or priority < found[tag][0]:
                    found[tag] = (priority, identifier)
        return {key: identifier for key, (_, identifier) in found.items()}

    def _on_audio(self, samples: Any, count: int, events: Any) -> int:
        try:
            self._checkpoint()
        except (Cancelled, SystemExit) as stopped:
            self._stopped = stopped  # an exception can't pass through C
            return 1
        if samples and count:
            self._pcm += ctypes.string_at(samples, count * 2)
        index = 0
        while events[index].type:
            event = events[index]
            if event.type == _WORD_EVENT:
                self._words.append(_Mark(event.audio_position, at=event.text_position - 1))
            elif event.type == _PHONEME_EVENT:
                # The field is 8 bytes, not always ended by a zero: read it as bytes.
                raw = ctypes.string_at(ctypes.addressof(event.id), 8).split(b"\0")[0]
                self._phonemes.append(_Mark(event.audio_position, raw.decode("utf-8", "ignore")))
            index += 1
        return 0


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
    except OSError as error:
        raise ProviderUnavailable(
            problem=f"espeak-ng's library can't be loaded ({error}).",
            fix="run ./start.sh again, which installs it.",
        ) from error
    char_p, integer, unsigned = ctypes.c_char_p, ctypes.c_int, ctypes.c_uint
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.espeak_Initialize.argtypes = [integer, integer, char_p, integer]
    library.espeak_SetSynthCallback.argtypes = [_Callback]
    library.espeak_SetVoiceByName.argtypes = [char_p]
    library.espeak_SetParameter.argtypes = [integer, integer, integer]
    library.espeak_Synth.argtypes = [
        char_p, size, unsigned, integer, unsigned, unsigned, pointer, pointer
    ]  # fmt: skip
    library.espeak_ListVoices.argtypes = [pointer]
    library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
    library.espeak_TextToPhonemes.argtypes = [pointer, integer, integer]
    library.espeak_TextToPhonemes.restype = char_p
    return library


def _languages(address: int | None) -> Iterator[tuple[int, str]]:
    """A voice's languages: each a priority byte and a string, after the last a zero byte."""
    while address and (priority := ctypes.string_at(address, 1)[0]):
        tag = ctypes.string_at(address + 1)
        yield priority, tag.decode("latin-1").lower()
        address += len(tag) + 2


def _ended(pcm: bytes, rate: int) -> tuple[bytes, int]:
    """The sound with the pause between clauses after it, and when the sound itself ends, in ms."""
    samples = np.frombuffer(pcm, "<i2")
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > _AUDIBLE)
    end = int(loud[-1]) + 1 if len(loud) else len(samples)
    return pcm[: end * 2] + bytes(2 * (rate * _PAUSE_MS // 1000)), end * 1000 // rate


def _spans(phonemes: Sequence[_Mark], end_ms: int) -> Iterator[tuple[str, int, int]]:
    """Each phoneme with its start and end; silence is "".

    Marks without a sound also stand for tones, joints and the closing of the lips: too short to
    be a silence. "(en)" is a change of language.
    """
    marks: list[_Mark] = []
    for mark in phonemes:
        if not mark.ipa.startswith("(") and (mark.ipa or not marks or marks[-1].ipa):
            marks.append(mark)
    for mark, to in zip(marks, [*(mark.ms for mark in marks[1:]), end_ms], strict=True):
        if mark.ipa or to - mark.ms >= _SILENT_FROM_MS:
            yield mark.ipa, mark.ms, to


def word_times(
    text: str, words: Sequence[_Mark], phonemes: Sequence[_Mark], end_ms: int
) -> Iterator[WordTime]:
    """The words as slices of the text.

    espeak marks what it reads (`3.14` is four words to it, two Chinese characters can be one):
    the marks inside one written word are one word here.
    """
    tokens = [match.start() for match in TOKEN.finditer(text)]
    starts: dict[int, int] = {}
    for mark in words:
        token = bisect_right(tokens, mark.at) - 1
        if token >= 0:
            starts.setdefault(tokens[token], mark.ms)
    silences = [start for ipa, start, _ in _spans(phonemes, end_ms) if not ipa]
    marks = [*sorted(starts.items()), (len(text), end_ms)]
    for (at, ms), (next_at, next_ms) in pairwise(marks):
        until = min([next_ms, *(silence for silence in silences if silence > ms)])
        written = text[at:next_at].strip()
        if written and until > ms:
            yield WordTime(EDGES.sub("", written) or written, ms, until)


def visemes(phonemes: Sequence[_Mark], end_ms: int) -> Iterator[VisemeMark]:
    """The mouth's shapes, each different from the one before it, from "sil" to "sil"."""
    first = VisemeMark(0, CLOSED)
    yield first
    yield from changes(chain(_shapes(phonemes, end_ms), [(end_ms, CLOSED)]), first)


def _shapes(phonemes: Sequence[_Mark], end_ms: int) -> Iterator[tuple[int, Viseme]]:
    since: int | None = None
    for ipa, start, end in _spans(phonemes, end_ms):
        shapes = of_ipa(ipa) if ipa else [CLOSED]
        if not shapes:  # a breath: the mouth already takes the shape of what follows
            since = start if since is None else since
            continue
        begin = start if since is None else since
        since = None
        for index, shape in enumerate(shapes):
            yield begin + (end - begin) * index // len(shapes), shape
