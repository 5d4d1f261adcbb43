"""Tiny voices in Coqui's real file formats, with random weights: they babble, on purpose."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from TTS.config.shared_configs import BaseAudioConfig
from TTS.tts.configs.shared_configs import CharactersConfig
from TTS.tts.configs.vits_config import VitsArgs, VitsConfig
from TTS.tts.models.vits import Vits

from tests.built import built_once

SPEAKERS: Final = ("ada", "bo")
VITS_RATE: Final = 16_000
XTTS_TOKENS: Final = 45
"""The audio tokens of everything that the tiny XTTS says: three chunks, 0.5 s."""
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


def vits() -> Path:
    """The folder of a voice of two speakers that reads lower-case English letters."""
    return _built("vits", _build_vits)


def xtts() -> Path:
    """The folder of a voice that goes on until it has no more tokens, with one recording."""
    return _built("xtts", _build_xtts)


def _built(name: str, build: Callable[[Path], None]) -> Path:
    """A folder that is built once for this file and these libraries."""
    return built_once(name, build, [Path(__file__)], ["torch", "coqui-tts"])


def _build_vits(folder: Path) -> None:
    torch.manual_seed(0)
    model_args = VitsArgs(
        hidden_channels=32,
        hidden_channels_ffn_text_encoder=64,
        num_heads_text_encoder=2,
        num_layers_text_encoder=1,
        num_layers_flow=1,
        num_layers_posterior_encoder=1,
        out_channels=257,
        resblock_kernel_sizes_decoder=[3],
        resblock_dilation_sizes_decoder=[[1, 3, 5]],
        upsample_initial_channel_decoder=32,
        upsample_rates_decoder=[8, 8, 2, 2],
        upsample_kernel_sizes_decoder=[16, 16, 4, 4],
        use_sdp=False,
        init_discriminator=False,
        use_speaker_embedding=True,
        length_scale=3.0,
    )
    config = VitsConfig(
        model_args=model_args,
        audio=BaseAudioConfig(
            sample_rate=VITS_RATE, fft_size=512, win_length=512, hop_length=256, num_mels=80
        ),
        use_phonemes=False,
        text_cleaner="basic_cleaners",
        add_blank=True,
        test_sentences=[],
        phoneme_language="en",
        characters=CharactersConfig(
            characters_class="TTS.tts.models.vits.VitsCharacters",
            pad="_",
            eos="",
            bos="",
            blank=None,
            characters=_LETTERS,
            punctuations="!'(),-.:;? ",
            phonemes="",
        ),
        speakers=list(SPEAKERS),
    )
    model = Vits(config)
    # Louder: random weights whisper.
    with torch.no_grad():
        model.waveform_decoder.conv_post.weight *= 30
    torch.save({"model": model.state_dict(), "config": config.to_dict()}, folder / "model.pth")
    config.save_json(folder / "config.json")


def _build_xtts(folder: Path) -> None:
    # Only here: it takes seconds to import.
    from TTS.tts.configs.xtts_config import XttsArgs, XttsConfig  # noqa: PLC0415
    from TTS.tts.models.xtts import Xtts  # noqa: PLC0415

    torch.manual_seed(0)
    words = Tokenizer(models.BPE(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=120,
        special_tokens=["[STOP]", "[UNK]", "[SPACE]", "[START]", "[en]", "[zh-cn]"],
        initial_alphabet=list(_LETTERS + "0123456789.,!?'- "),
    )
    words.train_from_iterator(["hello student today we learn about light"], trainer)
    words.save(str(folder / "vocab.json"))
    model_args = XttsArgs(
        gpt_layers=1,
        gpt_n_model_channels=64,
        gpt_n_heads=2,
        gpt_max_audio_tokens=XTTS_TOKENS,
        gpt_code_stride_len=256,  # a quarter of the sound, and of the work
        gpt_num_audio_tokens=34,
        gpt_start_audio_token=32,
        gpt_stop_audio_token=33,
        gpt_use_perceiver_resampler=True,
        decoder_input_dim=64,
        gpt_number_text_tokens=words.get_vocab_size(),
        gpt_start_text_token=words.token_to_id("[START]"),
        gpt_stop_text_token=words.token_to_id("[STOP]"),
        tokenizer_file=str(folder / "vocab.json"),
    )
    config = XttsConfig(model_args=model_args)
    model = Xtts(config)
    model.gpt.mel_head.bias.data[33] = -1e4  # never the end, which random weights choose at once
    torch.save({"model": model.state_dict(), "config": config.to_dict()}, folder / "model.pth")
    config.model_args.tokenizer_file = ""
    config.save_json(folder / "config.json")
    record(folder / "voice.wav", 3.0)


def record(path: Path, seconds: float) -> None:
    """A hum that rises and falls, 24 kHz mono, as the recording of a voice."""
    at = np.arange(int(24_000 * seconds)) / 24_000
    hum = 0.3 * np.sin(2 * np.pi * 150 * at) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * at))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes((hum * 32_767).astype("<i2").tobytes())
