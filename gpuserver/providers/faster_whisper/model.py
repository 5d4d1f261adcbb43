"""A Whisper model and its tokenizer: sound in, words out, for several windows at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.tokenizer import Tokenizer
from numpy.typing import NDArray

from gpuserver.audio import SAMPLE_RATE
from gpuserver.config import Settings
from gpuserver.language import LANGUAGES, Language
from gpuserver.providers import Vocabulary, WordTime
from gpuserver.providers.faster_whisper.windows import WINDOW_SECONDS
from gpuserver.providers.faster_whisper.words import (
    Piece,
    confidence,
    context,
    hot_words,
    is_heard,
    is_repetitive,
    without_loop,
    words,
)

_STRIDE: Final = 160  # samples a frame
_FRAMES: Final = WINDOW_SECONDS * SAMPLE_RATE // _STRIDE
_ALIGNED_MS: Final = 20
_LONGEST: Final = 448
"""Tokens, the context's included: the model has no more places."""
_MOST_THREADS: Final = 8
"""Further ones wait for the memory."""
_BEAM_ON_GPU: Final = 5
"""On a CPU the likeliest token is taken, which is quicker."""
_RETRY_TEMPERATURE: Final = 0.4
_SURE_LANGUAGE: Final = 0.5

Contexts = Mapping[Language, Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """What the model hears at once: at most 30 seconds at 16 kHz."""

    samples: NDArray[np.int16]
    language: Language
    contexts: Contexts
    most_tokens: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Heard:
    """What was said in a window; its words' times count from its own start."""

    text: str
    words: tuple[WordTime, ...]
    confidence: float
    tokens: int
    language: Language | None


@dataclass(frozen=True, slots=True)
class _Draft:
    tokens: Sequence[int]
    text: str
    log_probability: float
    """The mean of a token's."""
    no_speech: float

    @property
    def confidence(self) -> float:
        return confidence(self.log_probability, self.no_speech)

    @property
    def heard(self) -> bool:
        return is_heard(self.text, self.log_probability, self.no_speech)


class Whisper:
    """A model and its tokenizer. All its methods block."""

    def __init__(self, folder: Path, settings: Settings, gpu: int | None) -> None:
        """`gpu`: the one to use, None where none was chosen."""
        device = settings.device
        if device == "auto":
            # With PROFILE=cpu the libraries that a GPU needs are not installed.
            on_gpu = settings.profile != "cpu" and ctranslate2.get_cuda_device_count()
            device = "cuda" if on_gpu else "cpu"
        self.on_gpu = device == "cuda"
        whole = WhisperModel(
            str(folder),
            device=device,
            device_index=gpu or 0,
            compute_type=_precision(device, settings),
            cpu_threads=min(_MOST_THREADS, len(os.sched_getaffinity(0))),
            local_files_only=True,
        )
        self._model: Any = whole.model
        self._encode = whole.encode
        self._text = whole.hf_tokenizer
        # The folder's own settings for this may be missing.
        self._mel = FeatureExtractor(feature_size=self._model.n_mels)
        multilingual = bool(self._model.is_multilingual)
        self.languages = frozenset(
            language
            for language in LANGUAGES
            if language == "en"
            or (multilingual and self._text.token_to_id(f"<|{language}|>") is not None)
        )
        self._tokenizers: dict[Language, Tokenizer] = {
            language: Tokenizer(self._text, multilingual, "transcribe", language)
            for language in LANGUAGES
            if language in self.languages
        }
        self._detects = settings.asr_detect_language and len(self.languages) > 1
        self._beam = _BEAM_ON_GPU if self.on_gpu else 1

    def contexts(self, vocabulary: Vocabulary | None) -> Contexts:
        """What is put before each language's transcripts: all of the same length."""
        hot = hot_words(vocabulary, self._token_ids) if vocabulary else []
        return {
            language: [tokenizer.sot_prev, *context(language, hot, self._token_ids)]
            for language, tokenizer in self._tokenizers.items()
        }

    def recognise(self, batch: Sequence[Window]) -> list[Heard]:
        """What was said in each window. Raises RuntimeError."""
        features = np.stack([self._features(window.samples) for window in batch])
        encoded = self._encode(features)
        found = self._spoken(encoded) if self._detects else [None] * len(batch)
        languages = [known or window.language for known, window in zip(found, batch, strict=True)]
        most = max(window.most_tokens for window in batch)
        prompts = [
            [*window.contexts[language], *self._opening(language)]
            for window, language in zip(batch, languages, strict=True)
        ]
        drafts = self._written(encoded, prompts, most)
        for index, draft in enumerate(drafts):
            if is_repetitive(draft.text):
                drafts[index] = self._again(features[index], languages[index], most, draft)
        lengths = [len(window.samples) for window in batch]
        timed = self._timed(encoded, languages, drafts, lengths)
        return [
            Heard(draft.text, times, draft.confidence, len(draft.tokens), language)
            if draft.heard
            else Heard("", (), 0.0, 0, None)
            for draft, times, language in zip(drafts, timed, found, strict=True)
        ]

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._text.encode_batch([*texts], add_special_tokens=False)]

    def _features(self, samples: NDArray[np.int16]) -> NDArray[np.float32]:
        """The log-mel spectrogram; 0 beyond the recording, as faster-whisper has it."""
        mel = self._mel(samples.astype(np.float32) / 32768)[:, :_FRAMES]
        padded = np.zeros((mel.shape[0], _FRAMES), np.float32)
        padded[:, : mel.shape[1]] = mel
        return padded

    def _spoken(self, encoded: Any) -> list[Language | None]:
        """The language of each; None where it is another than ours, or not sure."""
        found: list[Language | None] = []
        for ranked in self._model.detect_language(encoded):
            token, probability = ranked[0]
            known = token[2:-2] in self.languages and probability >= _SURE_LANGUAGE
            found.append(cast(Language, token[2:-2]) if known else None)
        return found

    def _opening(self, language: Language) -> list[int]:
        tokenizer = self._tokenizers[language]
        return [*tokenizer.sot_sequence, tokenizer.no_timestamps]

    def _written(
        self, encoded: Any, prompts: Sequence[Sequence[int]], most: int, temperature: float = 0.0
    ) -> list[_Draft]:
        sampling = {"sampling_topk": 0, "sampling_temperature": temperature} if temperature else {}
        results = self._model.generate(
            encoded,
            prompts,
            beam_size=1 if temperature else self._beam,
            # Of this, at most one half is written.
            max_length=min(_LONGEST, max(2 * most, len(prompts[0]) + most)),
            return_scores=True,
            return_no_speech_prob=True,
            **sampling,
        )
        return [
            self._draft(
                result.sequences_ids[0],
                # The library gives the mean without the end, which counts as well.
                result.scores[0] * len(result.sequences_ids[0])
                / (len(result.sequences_ids[0]) + 1),
                result.no_speech_prob,
            )
            for result in results
        ]  # fmt: skip

    def _draft(self, tokens: Sequence[int], log_probability: float, no_speech: float) -> _Draft:
        # A character may have been cut in half.
        text = self._text.decode(list(tokens)).replace("\ufffd", "").strip()
        return _Draft(tokens, text, log_probability, no_speech)

    def _again(
        self, features: NDArray[np.float32], language: Language, most: int, draft: _Draft
    ) -> _Draft:
        """What goes round in circles once more, without what came before, less strictly."""
        encoded = self._encode(features)
        again = self._written(encoded, [self._opening(language)], most, _RETRY_TEMPERATURE)[0]
        if not is_repetitive(again.text):
            return again
        return self._draft(without_loop(draft.tokens), draft.log_probability, draft.no_speech)

    def _timed(
        self,
        encoded: Any,
        languages: Sequence[Language],
        drafts: Sequence[_Draft],
        lengths: Sequence[int],
    ) -> list[tuple[WordTime, ...]]:
        """The words of each draft that was heard."""
        times: list[tuple[WordTime, ...]] = [()] * len(drafts)
        frames = [min(length // _STRIDE, _FRAMES) for length in lengths]
        for language, tokenizer in self._tokenizers.items():
            # The others' are left empty: what is encoded can't be taken apart.
            tokens = [
                list(draft.tokens) if draft.heard and spoken == language else []
                for draft, spoken in zip(drafts, languages, strict=True)
            ]
            if not any(tokens):
                continue
            aligned = self._model.align(encoded, tokenizer.sot_sequence, tokens, frames)
            for index, result in enumerate(aligned):
                if tokens[index]:
                    limit = lengths[index] * 1000 // SAMPLE_RATE
                    pieces = _pieces(tokenizer, tokens[index], result.alignments, limit)
                    times[index] = words(pieces, limit)
        return times


def _precision(device: str, settings: Settings) -> str:
    if settings.asr_precision != "auto":
        return settings.asr_precision
    wanted = "float16" if device == "cuda" else "int8"
    return wanted if wanted in ctranslate2.get_supported_compute_types(device) else "float32"


def _pieces(
    tokenizer: Tokenizer, tokens: Sequence[int], path: Sequence[tuple[int, int]], limit_ms: int
) -> list[Piece]:
    """Whole characters and when they sound; the path leads through (token, step of 20 ms)."""
    starts: dict[int, int] = {}
    for token, step in path:
        starts.setdefault(token, step * _ALIGNED_MS)
    pieces: list[Piece] = []
    at = 0
    for text, own in zip(*tokenizer.split_tokens_on_unicode([*tokens]), strict=True):
        after = at + len(own)
        if text:
            pieces.append(Piece(text, starts.get(at, limit_ms), starts.get(after, limit_ms)))
        at = after
    return pieces
