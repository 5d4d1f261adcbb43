"""An XTTS voice: speech as it is made, in any of its languages, in the voice of a recording."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pypinyin import lazy_pinyin
from TTS.tts.models.xtts import Xtts

from gpuserver.errors import ProviderUnavailable
from gpuserver.language import Language
from gpuserver.providers import Speech
from gpuserver.providers.coqui.files import pcm16, read_recording, recordings, unknown_voice
from gpuserver.providers.spoken_clauses import UNIT_MS, Clause, portions, words_of
from gpuserver.providers.worker import Checkpoint

_CODES: Final[dict[Language, tuple[str, ...]]] = {"en": ("en",), "zh": ("zh-cn", "zh")}
_REFERENCE_RATE: Final = 22_050
_CHUNK_TOKENS: Final = 20  # about 0.9 s
_VOICES_KEPT: Final = 32
_MARGIN_TOKENS: Final = 8  # the model puts some of its own beside those of the text


class XttsVoice:
    """`config` is the model's own. Raises ProviderUnavailable, and what torch and Coqui raise."""

    def __init__(
        self, config: Any, folder: Path, weights: Path, device: str, checkpoint: Checkpoint
    ) -> None:
        if not (folder / "vocab.json").is_file():
            raise ProviderUnavailable(
                problem=f"The voice in {folder} has no vocab.json.",
                fix="fetch it again: gpuserver models pull NAME.",
            )
        self._folder, self._checkpoint = folder, checkpoint
        self._model = Xtts(config)
        self._model.load_checkpoint(config, folder, weights, eval=True)
        self._model.to(device)
        self._config = config
        self._ended = False
        self._model.gpt.get_generator = self._watched(self._model.gpt.get_generator)
        self.sample_rate = int(self._model.args.output_sample_rate)
        self._codes: dict[Language, str] = {
            language: code
            for language, codes in _CODES.items()
            for code in codes
            if code in config.languages
        }
        managed = self._model.speaker_manager
        self._speakers: tuple[str, ...] = tuple(managed.speaker_names) if managed else ()
        self._known: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._units: dict[tuple[str, Language], float] = {}
        self.default = self._first_voice()
        # Beyond its limits it swallows words.
        most = self._model.tokenizer.char_limits
        self.limits = {x: most[code.split("-")[0]] - 1 for x, code in self._codes.items()}

    def speak(self, text: str, language: Language, voice: str, speed: float) -> Iterator[Speech]:
        """The text as it is made, in pieces of about 0.9 s."""
        latents = self._latents(voice)
        # In brackets the model's own commands would be read.
        for portion in self._fitting(re.sub(r"[\[\]]", " ", text), language):
            if re.search(r"\w", portion):
                yield from self._stream(portion, language, voice, speed, latents)

    def _stream(
        self,
        text: str,
        language: Language,
        voice: str,
        speed: float,
        latents: tuple[torch.Tensor, torch.Tensor],
    ) -> Iterator[Speech]:
        unit_ms = self._units.get((voice, language), UNIT_MS)
        clause = Clause(words_of(text, lazy_pinyin), self.sample_rate, unit_ms / speed)
        chunks = self._model.inference_stream(
            text,
            self._codes[language],
            *latents,
            stream_chunk_size=_CHUNK_TOKENS,
            temperature=self._config.temperature,
            length_penalty=self._config.length_penalty,
            repetition_penalty=self._config.repetition_penalty,
            top_k=self._config.top_k,
            top_p=self._config.top_p,
            speed=speed,
        )
        with closing(chunks):
            for chunk in chunks:
                yield clause.add(pcm16(chunk.float().cpu().numpy()), last=self._ended)
        if len(self._units) < _VOICES_KEPT or (voice, language) in self._units:
            self._units[voice, language] = (unit_ms + clause.unit_ms * speed) / 2

    def _watched(self, generate: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """The model's generator of audio tokens, which stops between two when nobody waits, and
        tells that it has ended before the last chunk is made of them."""

        def tokens(*arguments: Any, **named: Any) -> Iterator[Any]:
            self._ended = False
            for token in generate(*arguments, **named):
                self._checkpoint()
                yield token
            self._ended = True

        return tokens

    def _fitting(self, text: str, language: Language) -> Iterator[str]:
        """The text in portions that the model has room for: numbers grow when read out."""
        tokens = self._model.tokenizer.encode(text.lower(), lang=self._codes[language])
        if len(text) < 2 or len(tokens) < self._model.args.gpt_max_text_tokens - _MARGIN_TOKENS:
            yield text
            return
        for portion in portions(text, (len(text) + 1) // 2):
            yield from self._fitting(portion, language)

    def _first_voice(self) -> str:
        if self._speakers:
            return self._speakers[0]
        for path in (self._folder / "voices", self._folder):
            if found := recordings(path):
                return str(found[0].relative_to(self._folder))
        raise ProviderUnavailable(
            problem=f"The model in {self._folder} has no voice of its own.",
            fix="put a recording of one into that folder: voice.wav, 6 to 30 seconds.",
        )

    def _latents(self, voice: str) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model knows of a voice. Raises ConfigurationError."""
        if voice not in self._known:
            self._known[voice] = self._listen(voice)
        self._known.move_to_end(voice)
        if len(self._known) > _VOICES_KEPT:
            self._known.popitem(last=False)
        return self._known[voice]

    def _listen(self, voice: str) -> tuple[torch.Tensor, torch.Tensor]:
        if voice in self._speakers:
            latent, speaker = self._model.speaker_manager.speakers[voice].values()
            return latent, speaker
        files = recordings(self._folder / voice) or recordings(Path(voice).expanduser())
        if not files:
            raise unknown_voice(voice, [*self._speakers, "the path of a recording"])
        config, model = self._config, self._model
        heard = [read_recording(x, _REFERENCE_RATE, config.max_ref_len) for x in files]
        speakers = [
            model.get_speaker_embedding(torch.from_numpy(x)[None], _REFERENCE_RATE) for x in heard
        ]
        latent = model.get_gpt_cond_latents(
            torch.from_numpy(np.concatenate(heard))[None],
            _REFERENCE_RATE,
            length=config.gpt_cond_len,
            chunk_length=config.gpt_cond_chunk_len,
        )
        return latent, torch.stack(speakers).mean(dim=0)
