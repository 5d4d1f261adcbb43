"""A VITS voice: a clause is made as a whole, and the model tells when its words sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pypinyin import lazy_pinyin
from TTS.config import get_from_config_or_model_args
from TTS.tts.models.vits import Vits
from TTS.tts.utils.text.phonemizers.espeak_wrapper import ESpeak

from gpuserver.errors import ProviderUnavailable
from gpuserver.language import Language
from gpuserver.providers import Speech
from gpuserver.providers.coqui.files import pcm16, unknown_voice
from gpuserver.providers.spoken_clauses import Clause, Span, Word, words_of
from gpuserver.providers.visemes import of_ipa
from gpuserver.providers.worker import Checkpoint

_MAX_CHARACTERS: Final = 400
_PREFIXES: Final[Mapping[str, Language]] = {"en": "en", "zh": "zh", "cm": "zh"}
_FILES: Final = ("speakers_file", "speaker_file", "d_vector_file", "language_ids_file")
_ENCODER: Final = ("speaker_encoder_model_path", "speaker_encoder_config_path")


class VitsVoice:
    """`config` is the model's own. Raises ProviderUnavailable, and what torch and Coqui raise."""

    def __init__(
        self, config: Any, folder: Path, weights: Path, device: str, checkpoint: Checkpoint
    ) -> None:
        if config.use_phonemes and config.phonemizer in {None, "", ESpeak.name()}:
            _need_espeak(folder)
        _point_into(folder, config)
        self._model = Vits(config)
        self._model.load_checkpoint(config, weights, eval=True)
        self._model.to(device)
        self._pace = self._model.length_scale
        alphabet = self._model.tokenizer.characters
        self._unsaid = {alphabet.blank_id, alphabet.pad_id, alphabet.bos_id, alphabet.eos_id}
        # Looked at here before the model asks for it again; a phonemiser is a program to start.
        read = self._model.tokenizer.text_to_ids
        self._model.tokenizer.text_to_ids = lru_cache(1)(read)
        self.sample_rate = int(config.audio["sample_rate"])
        speakers = self._model.speaker_manager
        self._speakers: tuple[str, ...] = tuple(speakers.speaker_names) if speakers else ()
        if speakers and get_from_config_or_model_args(config, "use_d_vector_file"):
            self._speakers = tuple(speakers.embedding_names)
        # Sorted: a language comes after its main form, which is the shorter.
        names = sorted(self._model.language_manager.language_names, reverse=True)
        self._names = {_PREFIXES[x[:2]]: x for x in names if x[:2] in _PREFIXES}
        if not self._names:
            raise ProviderUnavailable(
                problem=f"The voice in {folder} speaks {', '.join(names)}; tutors speak en and zh.",
                fix="choose a voice of one of these languages.",
            )
        self.limits = dict.fromkeys(self._names, _MAX_CHARACTERS)
        self.default = self._speakers[0] if self._speakers else ""

    def speak(self, text: str, language: Language, voice: str, speed: float) -> Iterator[Speech]:
        """The text in one piece; nothing if it has no letter that the model knows."""
        if voice and voice not in self._speakers:
            raise unknown_voice(voice, self._speakers)
        read = self._model.tokenizer.text_to_ids(text, language=self._names[language])
        if not self._unsaid.issuperset(read):
            yield from self._say(text, language, voice, speed)

    def _say(self, text: str, language: Language, voice: str, speed: float) -> Iterator[Speech]:
        self._model.length_scale = self._pace / speed
        made = self._model.synthesize(text, speaker=voice or None, language=self._names[language])
        samples = pcm16(made["wav"])
        tokens = made["text_inputs"][0].tolist()
        durations = made["outputs"]["durations"][0, 0].tolist()
        groups = self._groups(tokens, durations, len(samples) * 1000 / self.sample_rate)
        words = words_of(text, lazy_pinyin)
        spans = self._spans(words, groups) if len(words) == len(groups) else None
        yield Clause(words, self.sample_rate).add(samples, last=True, spans=spans)

    def _groups(
        self, tokens: Sequence[int], frames: Sequence[float], total_ms: float
    ) -> list[tuple[str, float, float]]:
        """What the model read, split at spaces: letters or phonemes, with start and end in ms."""
        alphabet = self._model.tokenizer.characters
        frame_ms = total_ms / max(1.0, sum(frames))
        groups: list[tuple[str, float, float]] = []
        at, inside = 0.0, False
        for token, count in zip(tokens, frames, strict=True):
            start, at = at, at + count * frame_ms
            sign = alphabet.id_to_char(token)
            if token in self._unsaid or sign in alphabet.punctuations.replace(" ", ""):
                continue
            if sign.isspace():
                inside = False
            elif inside:
                groups[-1] = (groups[-1][0] + sign, groups[-1][1], at)
            else:
                groups.append((sign, start, at))
                inside = True
        return groups

    def _spans(
        self, words: Sequence[Word], groups: Sequence[tuple[str, float, float]]
    ) -> list[Span]:
        phonemes = self._model.tokenizer.use_phonemes
        return [
            (replace(word, shapes=tuple(of_ipa(read))) if phonemes else word, start, end)
            for word, (read, start, end) in zip(words, groups, strict=True)
        ]


def _need_espeak(folder: Path) -> None:
    if not ESpeak.is_available():
        raise ProviderUnavailable(
            problem=f"The voice in {folder} needs the program espeak-ng, which is not installed.",
            fix="install it (Debian and Ubuntu: apt-get install espeak-ng).",
        )


def _point_into(folder: Path, config: Any) -> None:
    """Let the config name the files beside it: it holds paths of the machine it was made on."""
    for part in (config, config.model_args):
        for field in _FILES:
            value = part.get(field, None)
            named = value[0] if isinstance(value, list) and value else value
            if isinstance(named, str) and (beside := folder / Path(named).name).is_file():
                part[field] = [str(beside)] if isinstance(value, list) else str(beside)
    for field in _ENCODER:  # it clones voices for training, and is large
        if field in config.model_args:
            config.model_args[field] = ""
