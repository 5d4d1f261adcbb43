"""Makes tests/data/tiny-whisper.zip: a Whisper of 260,000 weights that knows ten sentences by ear.

Run it in the engines environment after changing the sentences: `python -m
tests.engines.train_tiny_whisper`. It takes some minutes on two cores.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from ctranslate2.converters import TransformersConverter
from faster_whisper.feature_extractor import FeatureExtractor
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from gpuserver.language import Language
from gpuserver.providers import Place
from gpuserver.providers.espeak import EspeakTTS
from gpuserver.providers.faster_whisper.words import STYLE
from tests.engines.tiny_whisper import ARCHIVE, SENTENCES, spoken

_WIDTH: Final = 64
_NOISES: Final = 160
_TAKES: Final = 60
_VARIANTS: Final = ("", "+f1", "+f2", "+f3", "+f4", "+f5", "+m1", "+m2", "+m3", "+m5", "+m7")
_ACCENTS: Final[dict[Language, tuple[str, ...]]] = {
    "en": ("en-us", "en-gb", "en-gb-scotland"), "zh": ("cmn",),
}  # fmt: skip
_LANGUAGES: Final = ("en", "zh", "de")
_SHORT: Final = 600
"""Frames of 10 ms. Most of the training is on so much, which costs a seventh of 30 seconds."""
_LONG: Final = 3000
_LONGEST_CONTEXT: Final = 110
_IGNORED: Final = -100
_SAID: Final = [sentence for _, sentence in SENTENCES]
# What hot words look like.
_WORDS: Final = [
    f"{word}{comma}"
    for comma in ",、"
    for word in (*re.findall(r"[a-z]+", " ".join(_SAID)), "elif", "numpy", "bectoid", "f-string")
]

Examples = list[tuple[NDArray[np.float32], int]]


# What it hears


def examples() -> Examples:
    """Log-mel spectrograms with the sentence in each; -1 for noise."""
    extractor = FeatureExtractor()
    rng = np.random.default_rng(0)
    return [(_mel(extractor, sound), index) for sound, index in _sounds(rng)]


def _sounds(rng: np.random.Generator) -> Iterator[tuple[NDArray[np.float32], int]]:
    voice = EspeakTTS("", Place(Path(tempfile.gettempdir())))
    voice.load()
    try:
        for index, (language, sentence) in enumerate(SENTENCES):
            for _ in range(_TAKES):
                accent = str(rng.choice(_ACCENTS[language])) + str(rng.choice(_VARIANTS))
                speed = float(rng.uniform(0.85, 1.15))
                said = asyncio.run(spoken(voice, sentence, language, accent, speed))
                yield _recorded((said.samples / 32768).astype(np.float32), rng), index
    finally:
        voice.close()
    for _ in range(_NOISES):
        yield _noise(rng), -1


def _recorded(sound: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Louder or softer, with a little noise, after and before some silence."""
    before, after = (np.zeros(int(rng.uniform(0, 0.8) * 16_000), np.float32) for _ in range(2))
    whole = np.concatenate([before, sound * rng.uniform(0.3, 1.0), after])
    hiss = rng.normal(0, 1, len(whole)) * rng.choice([0, 1e-4, 1e-3, 5e-3])
    recording: NDArray[np.float32] = (whole + hiss).astype(np.float32)
    return recording


def _noise(rng: np.random.Generator) -> NDArray[np.float32]:
    length = int(rng.uniform(0.3, 5) * 16_000)
    white = rng.normal(0, 1, length) * 10 ** rng.uniform(-4, -0.7)
    if rng.random() < 0.3:
        white = np.convolve(white, np.ones(int(rng.integers(2, 20))) / 4, "same")
    if rng.random() < 0.3:
        at = np.arange(length) / 16_000
        white += np.sin(2 * np.pi * rng.uniform(50, 400) * at) * rng.uniform(0.01, 0.3)
    noise: NDArray[np.float32] = white.astype(np.float32)
    return noise


def _mel(extractor: FeatureExtractor, sound: NDArray[np.float32]) -> NDArray[np.float32]:
    # As faster-whisper does it: what lies beyond the recording is 0.
    frames = extractor(sound)[:, :_SHORT]
    padded = np.zeros((len(frames), _SHORT), np.float32)
    padded[:, : frames.shape[1]] = frames
    return padded


# What it writes


def tokenizer() -> Tokenizer:
    """Byte-level BPE in Whisper's order: text, then <|endoftext|>, then the other specials.

    No timestamps: nothing here asks for them, and 1501 would be most of the model.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        [f" {sentence}" for _, sentence in SENTENCES] * 5,
        trainers.BpeTrainer(
            vocab_size=340,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # CTranslate2 calls a model multilingual if its vocabulary holds "": this becomes it.
    made.add_tokens([AddedToken("~0", normalized=False)])
    specials = [
        "<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in _LANGUAGES),
        "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
        "<|notimestamps|>",
    ]  # fmt: skip
    made.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in specials]
    )
    return made


def model(words: Tokenizer) -> WhisperForConditionalGeneration:
    end, start = words.token_to_id("<|endoftext|>"), words.token_to_id("<|startoftranscript|>")
    ids: dict[str, Any] = {
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": end,
        "decoder_start_token_id": start, "suppress_tokens": [], "begin_suppress_tokens": [end],
    }  # fmt: skip
    made = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=words.get_vocab_size(), d_model=_WIDTH, num_mel_bins=80,
            encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=2 * _WIDTH, decoder_ffn_dim=2 * _WIDTH,
            dropout=0.0, max_source_positions=_LONG // 2, max_target_positions=448, **ids,
        )
    )  # fmt: skip
    made.generation_config = GenerationConfig(
        **ids,
        lang_to_id={f"<|{x}|>": words.token_to_id(f"<|{x}|>") for x in _LANGUAGES},
        task_to_id={x: words.token_to_id(f"<|{x}|>") for x in ("transcribe", "translate")},
        no_timestamps_token_id=words.token_to_id("<|notimestamps|>"),
        is_multilingual=True,
        alignment_heads=[[0, 0], [0, 1]],
    )
    return made


class Targets:
    """What the decoder reads and is to write, for a batch of examples."""

    def __init__(self, words: Tokenizer) -> None:
        self._words = words
        self._texts = [
            words.encode(f" {sentence}", add_special_tokens=False).ids for _, sentence in SENTENCES
        ]

    def _id(self, token: str) -> int:
        found = self._words.token_to_id(token)
        assert found is not None
        return found

    def __call__(self, indexes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and labels, both (batch, length), after a context that means nothing."""
        context = random.choice([0, random.randint(4, _LONGEST_CONTEXT)])
        rows = [self._row(index, context) for index in indexes]
        length = max(len(ids) for ids, _ in rows)
        end = self._id("<|endoftext|>")
        return (
            torch.tensor([ids + [end] * (length - len(ids)) for ids, _ in rows]),
            torch.tensor([labels + [_IGNORED] * (length - len(labels)) for _, labels in rows]),
        )

    def _context(self, length: int) -> list[int]:
        """Something that was said before: of all that may stand there, and rubbish."""
        told = random.choices([*STYLE.values(), *_SAID, *_WORDS], k=length)
        words = self._words.encode(" " + " ".join(told), add_special_tokens=False).ids
        at = random.randrange(length or 1)
        rubbish = [random.randrange(self._id("~0")) for _ in range(length)]
        chosen = (rubbish if random.random() < 0.3 else words[at : at + length])[1:]
        return [self._id("<|startofprev|>"), *chosen] if length else []

    def _row(self, index: int, context: int) -> tuple[list[int], list[int]]:
        before = self._context(context)
        start = self._id("<|startoftranscript|>")
        if index < 0:
            ids = [*before, start]
            return ids, [_IGNORED] * context + [self._id("<|nospeech|>")]
        opening = [
            self._id(f"<|{SENTENCES[index][0]}|>"),
            self._id("<|transcribe|>"),
            self._id("<|notimestamps|>"),
        ]
        text = self._texts[index]
        labels = [opening[0], _IGNORED, _IGNORED, *text, self._id("<|endoftext|>")]
        return [*before, start, *opening, *text], [_IGNORED] * context + labels


# Training


def fit(
    learner: WhisperForConditionalGeneration,
    heard: Examples,
    targets: Targets,
    *,
    frames: int,
    steps: int,
    rate: float,
    batch: int,
) -> None:
    optimizer = torch.optim.AdamW(learner.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )
    learner.train()
    for step in range(steps):
        chosen = random.choices(heard, k=batch)
        sounds = np.zeros((batch, 80, frames), np.float32)
        for row, (mel, _) in enumerate(chosen):
            sounds[row, :, : mel.shape[1]] = mel
        ids, labels = targets([index for _, index in chosen])
        written = learner(input_features=torch.tensor(sounds), decoder_input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(
            written.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"{frames} frames, step {step}: loss {loss.item():.3f}", flush=True)  # noqa: T201


def train(learner: WhisperForConditionalGeneration, words: Tokenizer, steps: int) -> None:
    """First on six seconds, then on the half minute that the recogniser is given."""
    heard, targets = examples(), Targets(words)
    short = WhisperForConditionalGeneration(
        WhisperConfig(**{**learner.config.to_dict(), "max_source_positions": _SHORT // 2})
    )
    fit(short, heard, targets, frames=_SHORT, steps=steps, rate=2e-3, batch=24)
    weights = short.state_dict()
    del weights["model.encoder.embed_positions.weight"]
    learner.load_state_dict(weights, strict=False)
    fit(learner, heard, targets, frames=_LONG, steps=steps // 8, rate=5e-4, batch=8)
    learner.eval()


def save(learner: WhisperForConditionalGeneration, words: Tokenizer, archive: Path) -> None:
    """Convert to CTranslate2, in int8 and float16, and pack it."""
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder) / "hf", Path(folder) / "ct2"
        learner.save_pretrained(theirs)
        end = "<|endoftext|>"
        PreTrainedTokenizerFast(
            tokenizer_object=words, bos_token=end, eos_token=end, pad_token=end, unk_token=end
        ).save_pretrained(theirs)
        words.save(str(theirs / "tokenizer.json"))
        WhisperFeatureExtractor(feature_size=80).save_pretrained(theirs)
        TransformersConverter(
            str(theirs), copy_files=["tokenizer.json", "preprocessor_config.json"]
        ).convert(str(ours), quantization="int8_float16")
        vocabulary = ours / "vocabulary.json"
        tokens = json.loads(vocabulary.read_text())
        tokens[tokens.index("~0")] = ""
        vocabulary.write_text(json.dumps(tokens))
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
            for file in sorted(ours.iterdir()):
                packed.write(file, file.name)


def main(archive: Path, steps: int = 700) -> None:
    random.seed(0)
    torch.manual_seed(0)
    words = tokenizer()
    learner = model(words)
    train(learner, words, steps)
    save(learner, words, archive)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ARCHIVE)
