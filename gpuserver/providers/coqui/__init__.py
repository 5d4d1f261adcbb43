"""Speech by Coqui's models, VITS and XTTS, in a worker process; word times may be estimates."""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import time
import warnings
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gpuserver.errors import ConfigurationError, EngineFailed, OutOfMemory, ProviderUnavailable
from gpuserver.language import Language
from gpuserver.observability import get_logger
from gpuserver.providers import Place, Speech, Status, weights
from gpuserver.providers.spoken_clauses import portions
from gpuserver.providers.worker import Checkpoint, Worker

if TYPE_CHECKING:
    from gpuserver.providers.coqui.engine import Card

log = get_logger(__name__)

_SPEEDS: Final = (0.5, 2.0)
_LOAD_SECONDS: Final = 600.0
_DESCRIBE_SECONDS: Final = 30.0
_PIECE_SECONDS: Final = 60.0
# With a number: the library that reads numbers takes seconds to import, when the first one comes.
_PROBE: Final[Mapping[Language, str]] = {"en": "Take 1.", "zh": "好，1。"}


class CoquiTTS:
    """One model, which all its students share: clause by clause, in the order they are asked for.

    `model` is a folder, or a name of Coqui's such as `tts_models/en/ljspeech/vits`. A tutor's voice
    is one of the model's speakers or, for XTTS, the path of a recording or of a folder of them:
    the operator's to name, never a student's.
    """

    def __init__(self, model: str, place: Place) -> None:
        self.sample_rate = 0
        self.voices: Mapping[Language, str] = {}
        self._model, self._place = model, place
        self._limits: Mapping[Language, int] = {}
        self._worker: Worker | None = None

    def load(self) -> None:
        """Blocking, seconds to minutes. Raises ProviderUnavailable."""
        settings = self._place.settings
        if not self._model:
            raise ProviderUnavailable(
                problem="TTS_MODEL names no voice for coqui.",
                fix="set it to a folder or to a name such as tts_models/en/ljspeech/vits, "
                "fetched by: gpuserver models pull tts_models/en/ljspeech/vits.",
            )
        folder = weights.folder(self._model, settings, self._place.on_progress)
        self._place.on_progress("loading", None)
        self._worker = Worker(
            "coqui", _engine, folder, _device(self._place), start_seconds=_LOAD_SECONDS
        )
        self._worker.start()
        try:
            asyncio.run(self._introduce(folder))
        except EngineFailed as error:
            if isinstance(error.__cause__, OutOfMemory):
                raise error.__cause__ from None
            raise ProviderUnavailable(
                problem=f"The voice in {folder} was loaded but can't speak.",
                fix="see the log above for the reason, or choose another voice.",
            ) from error

    async def _introduce(self, folder: Path) -> None:
        """What the model is, and its first words."""
        assert self._worker is not None
        card: Card = await self._worker.call("describe", deadline=_DESCRIBE_SECONDS)
        self.sample_rate, self._limits = card.sample_rate, card.limits
        self.voices = dict.fromkeys(card.limits, card.voice)
        self._place.on_progress("warming", None)
        await self.probe()
        log.info("voice loaded", model=card.model, device=card.device, languages=[*card.limits])
        if card.model == "xtts":
            log.warning("XTTS is licensed for non-commercial use only", folder=str(folder))

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    async def speak(
        self, clause: str, language: Language, voice: str, speed: float
    ) -> AsyncGenerator[Speech, None]:
        """The clause as PCM16: in one piece by VITS, as it is made by XTTS.

        Words and mouth shapes come with the piece they begin in. `speed` is bounded to 0.5–2.
        Raises EngineFailed, and ConfigurationError for a voice that does not exist.
        """
        if language not in self.voices:
            raise EngineFailed(engine="coqui")
        speed = min(max(speed, _SPEEDS[0]), _SPEEDS[1])
        text = re.sub(r"[\x00-\x1f\x7f]", " ", clause).encode("utf-8", "replace").decode()
        for portion in portions(text, self._limits[language]):
            if not re.search(r"\w", portion):
                continue
            made = self._say(portion, language, voice or self.voices[language], speed)
            async with aclosing(made) as pieces:
                async for speech in pieces:
                    yield speech

    async def pronounce(self, words: Sequence[str]) -> Mapping[str, str]:
        """Nothing: it can't tell."""
        return {}

    def status(self) -> Status:
        """At once; a worker that has died is replaced from here on."""
        return self._worker.status() if self._worker is not None else Status("restarting")

    async def probe(self) -> None:
        """The first piece of one word. Raises EngineFailed."""
        language = next(iter(self.voices))
        said = self._say(_PROBE[language], language, self.voices[language], 1.0)
        async with aclosing(said) as pieces:
            async for _ in pieces:
                return

    async def _say(
        self, text: str, language: Language, voice: str, speed: float
    ) -> AsyncGenerator[Speech, None]:
        assert self._worker is not None, "load() comes first"
        meter = self._place.meter
        asked = time.monotonic()
        worked, audio = 0.0, 0.0
        made = self._worker.stream("speak", text, language, voice, speed, deadline=_PIECE_SECONDS)
        try:
            async with aclosing(made) as pieces:
                async for piece in pieces:
                    if not audio:
                        meter.waited(max(0.0, time.monotonic() - asked - piece.seconds))
                    worked += piece.seconds
                    audio += len(piece.speech.pcm) / 2 / self.sample_rate
                    yield piece.speech
        except EngineFailed:
            meter.failed()
            raise
        except OutOfMemory as error:  # the voice is loaded: for a student it fails at this clause
            meter.failed()
            log.error("out of memory", model=self._model)
            raise EngineFailed(engine="coqui") from error
        except ConfigurationError as error:
            log.error("a tutor's voice can't be used", reason=str(error))
            raise
        finally:
            if audio:
                meter.worked(worked, audio)


def _device(place: Place) -> str:
    return place.settings.device if place.gpu is None else f"cuda:{place.gpu}"


def _engine(folder: Path, device: str, checkpoint: Checkpoint) -> Any:
    """In the child, where alone PyTorch is imported: it would cost the server 0.3 GB and 4 s."""
    # These libraries write the text they are given into their warnings.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        module = importlib.import_module("gpuserver.providers.coqui.engine")
    except ImportError as error:
        raise ProviderUnavailable(
            problem=f"The tts provider 'coqui' lacks a library: {error}.",
            fix="run ./start.sh again, which installs what it needs.",
        ) from error
    return module.CoquiEngine(folder, device, checkpoint)
