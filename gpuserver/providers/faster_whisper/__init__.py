"""Speech recognition by Whisper (faster-whisper): one model, several students at a time."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuserver.audio import SAMPLE_RATE, Audio
from gpuserver.errors import EngineFailed, ProviderUnavailable, SpeechUnavailable
from gpuserver.language import Language
from gpuserver.providers import Place, Status, Transcript, Vocabulary, WordTime, weights
from gpuserver.providers.faster_whisper.batches import Batches
from gpuserver.providers.faster_whisper.model import Contexts, Heard, Whisper, Window
from gpuserver.providers.faster_whisper.windows import windows
from gpuserver.providers.faster_whisper.words import glued

_ENGINE: Final = "asr"
_TOGETHER: Final = 4
"""Windows of one long recording that wait at the same time; the others' come in between."""
_KEPT_CONTEXTS: Final = 256  # of half a kilobyte
_PROBE_SECONDS: Final = 0.5


class FasterWhisperASR:
    """`model` is a folder in CTranslate2's format, a size such as `small`, or a hub name.

    It recognises on a thread of its own, during which the interpreter is free.
    """

    languages: frozenset[str] = frozenset({"en"})

    def __init__(self, model: str, place: Place) -> None:
        self._model = model
        self._place = place
        self._whisper: Whisper | None = None
        self._batches: Batches[Window, Heard] | None = None
        self._plain: Contexts = {}  # for no vocabulary
        self._contexts: dict[str, Contexts] = {}  # by the vocabulary's digest

    def load(self) -> None:
        """Load the model and run it. Blocking. Raises ProviderUnavailable."""
        settings = self._place.settings
        if not self._model:
            raise ProviderUnavailable(
                problem="faster-whisper has no model.",
                fix="set ASR_MODEL to a folder, or to a size such as small, and fetch it: "
                "gpuserver models pull small",
            )
        folder = weights.folder(self._model, settings, self._place.on_progress)
        _check(folder)
        self._place.on_progress("loading", None)
        with _explained(folder):
            whisper = Whisper(folder, settings, self._place.gpu)
        self._place.on_progress("warming", None)
        # On a GPU in a whole batch: if the memory is short, it shows now.
        size = settings.asr_batch if whisper.on_gpu else 1
        with _explained(folder):
            self._plain = whisper.contexts(None)
            whisper.recognise([self._noise()] * size)
        self._whisper, self.languages = whisper, whisper.languages
        self._batches = Batches(_ENGINE, settings.asr_batch, self._work, self._place.meter)

    def close(self) -> None:
        # A thread that hangs keeps its model; nothing else can be done about it.
        if self._batches is None or self._batches.close():
            self._whisper = None

    async def prepare(self, vocabulary: Vocabulary) -> None:
        """Find the words of a course that the model needs to be told of."""
        await self._contexts_of(vocabulary)

    async def transcribe(
        self, audio: Audio, language: Language, vocabulary: Vocabulary | None
    ) -> Transcript:
        """What was said, as it is written, with the times of its words. Takes 16 kHz.

        Nothing, with a confidence of 0, for silence and for what Whisper is known to make of it.
        With `ASR_DETECT_LANGUAGE` `language` is what is expected where none is sure. When it is
        cancelled, what has not begun is not done. Raises SpeechUnavailable and EngineFailed.
        """
        if language not in self.languages:
            raise SpeechUnavailable(
                language=language, fix="ASR_MODEL to a multilingual Whisper, such as small"
            )
        if audio.sample_rate != SAMPLE_RATE:
            raise ValueError(f"the recogniser hears {SAMPLE_RATE} Hz, not {audio.sample_rate}")
        contexts = await self._contexts_of(vocabulary)
        parts = await asyncio.to_thread(lambda: [*windows(audio.samples)])
        heard: list[tuple[int, Heard]] = []
        for first in range(0, len(parts), _TOGETHER):
            some = parts[first : first + _TOGETHER]
            made = [
                Window(samples, language, contexts, _most_tokens(samples)) for _, samples in some
            ]
            results = await self._recognised(made)
            heard += zip([start * 1000 // SAMPLE_RATE for start, _ in some], results, strict=True)
        return _transcript([(at, one) for at, one in heard if one.text])

    def status(self) -> Status:
        batches = self._batches
        return Status(running=batches.running, waiting=batches.waiting) if batches else Status()

    async def probe(self) -> None:
        """Half a second of faint noise and one token, in its turn. Raises EngineFailed."""
        await self._recognised([self._noise()])

    async def _recognised(self, made: Sequence[Window]) -> Sequence[Heard]:
        assert self._batches is not None, "load() comes first"
        waiting: list[asyncio.Future[Heard]] = []
        try:
            waiting.extend(asyncio.wrap_future(self._batches.submit(window)) for window in made)
            return await asyncio.gather(*waiting)
        finally:
            for one in waiting:  # nobody waits for the rest
                one.cancel()

    def _noise(self) -> Window:
        noise = np.random.default_rng(0).normal(0, 50, int(_PROBE_SECONDS * SAMPLE_RATE))
        return Window(noise.astype(np.int16), "en", self._plain, 1)

    async def _contexts_of(self, vocabulary: Vocabulary | None) -> Contexts:
        if vocabulary is None:
            return self._plain
        if vocabulary.digest in self._contexts:
            return self._contexts[vocabulary.digest]
        return await asyncio.to_thread(self._look_up, vocabulary)

    def _look_up(self, vocabulary: Vocabulary) -> Contexts:
        whisper = self._whisper
        if whisper is None:  # closed
            raise EngineFailed(engine=_ENGINE)
        made = whisper.contexts(vocabulary)
        if len(self._contexts) >= _KEPT_CONTEXTS:
            self._contexts.clear()
        self._contexts[vocabulary.digest] = made
        return made

    def _work(self, batch: Sequence[Window]) -> Sequence[Heard]:
        """In the thread of the batches."""
        assert self._whisper is not None
        started = time.monotonic()
        heard = self._whisper.recognise(batch)
        audio_seconds = sum(window.seconds for window in batch)
        self._place.meter.worked(time.monotonic() - started, audio_seconds)
        return heard


def _most_tokens(samples: NDArray[np.int16]) -> int:
    """More than anybody says in the time: a model that goes round in circles ends there."""
    return 20 + 15 * len(samples) // SAMPLE_RATE


def _transcript(heard: Sequence[tuple[int, Heard]]) -> Transcript:
    """One out of all windows, with their starts in ms."""
    if not heard:
        return Transcript("", (), 0.0)
    tokens = sum(one.tokens for _, one in heard)
    likelihood = sum(one.tokens * math.log(max(one.confidence, 1e-30)) for _, one in heard)
    spoken = Counter(one.language for _, one in heard if one.language)
    return Transcript(
        glued([one.text for _, one in heard]),
        tuple(
            WordTime(word.text, word.start_ms + at, word.end_ms + at)
            for at, one in heard
            for word in one.words
        ),
        math.exp(likelihood / tokens),
        spoken.most_common(1)[0][0] if spoken else None,
    )


# Loading

_FIXES: Final = (
    ("memory", "free some, choose a smaller ASR_MODEL, or set ASR_PRECISION=int8_float16."),
    ("compute type", "set ASR_PRECISION=auto."),
    ("cuda|cudnn|cublas|libcu", "check the NVIDIA driver with nvidia-smi, or set DEVICE=cpu."),
)


def _check(folder: Path) -> None:
    """Raises ProviderUnavailable where a file is missing that the library would ask a hub for."""
    for name in ("model.bin", "config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ProviderUnavailable(
                problem=f"{folder} holds no Whisper in CTranslate2's format: {name} is missing.",
                fix="name one that does, or a size such as small; yours is converted by "
                "ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json",
            )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    # The tokenizers library raises nothing narrower.
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        fix = next((fix for pattern, fix in _FIXES if re.search(pattern, said, re.I)), None)
        raise ProviderUnavailable(
            problem=f"The Whisper in {folder} can't be loaded ({type(error).__name__}: {said}).",
            fix=fix or f"its files may be damaged: remove {folder} and fetch or copy it again.",
        ) from error
