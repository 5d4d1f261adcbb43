"""English speech recognition by pocketsphinx, with the words of the tutor's own course."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pocketsphinx import Decoder, get_model_path
from pocketsphinx.lm import ArpaBoLM

from gpuserver.audio import SAMPLE_RATE, Audio
from gpuserver.errors import ProviderUnavailable, SpeechUnavailable
from gpuserver.language import Language
from gpuserver.providers import Place, Status, Transcript, Vocabulary, WordTime
from gpuserver.providers.worker import Checkpoint, Worker, WorkerPool

_DECODERS: Final = 4  # of about 10 MB, a process
_KEPT_VOCABULARIES: Final = 32  # on the disk
_PREPARE_SECONDS: Final = 60.0
_DEADLINE_SECONDS: Final = 30.0  # and the recording's own length
_HUM: Final = (1000 * np.sin(np.arange(SAMPLE_RATE // 2) / 20)).astype(np.int16).tobytes()


class PocketsphinxASR:
    """The embedded recogniser, in processes of its own: it holds the interpreter while it works.

    `model` is the folder of another acoustic model; the library's own American English unless
    given.
    """

    languages: frozenset[str] = frozenset({"en"})

    def __init__(self, model: str, place: Place) -> None:
        self._model = model
        self._place = place
        self._pool: WorkerPool | None = None
        self._prepared = ""

    def load(self) -> None:
        """Start the processes. Blocking. Raises ProviderUnavailable."""
        acoustic = self._model or get_model_path("en-us/en-us")
        if not (Path(acoustic) / "mdef").is_file():
            raise ProviderUnavailable(
                problem=f"There is no pocketsphinx acoustic model in {acoustic}.",
                fix="leave ASR_MODEL empty, or name a folder that holds one.",
            )
        folder = self._place.data_dir / "vocabulary"
        self._pool = WorkerPool(
            [
                Worker("pocketsphinx", Recogniser, acoustic, folder)
                for _ in range(max(1, self._place.settings.asr_workers))
            ]
        )
        self._pool.start()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    async def prepare(self, vocabulary: Vocabulary) -> None:
        """Build what recognises this vocabulary ahead of the first student."""
        for worker in self._loaded.workers:
            await worker.call(
                "prepare", vocabulary.digest, _sendable(vocabulary), deadline=_PREPARE_SECONDS
            )
        self._prepared = vocabulary.digest

    async def transcribe(
        self, audio: Audio, language: Language, vocabulary: Vocabulary | None
    ) -> Transcript:
        """What was said, in lower-case words. Takes 16 kHz.

        `confidence` is the geometric mean, over the words, of the posterior probability of the
        best path: on clear speech right answers measure 0.4–0.85, speech outside the vocabulary
        0–0.55 and noise below 0.15; it is 0 when no word was heard. Raises SpeechUnavailable
        (not English) and EngineFailed.
        """
        if language not in self.languages:
            raise SpeechUnavailable(
                language=language, fix="ASR_PROVIDER to a recogniser that knows it"
            )
        if audio.sample_rate != SAMPLE_RATE:
            raise ValueError(f"the recogniser hears {SAMPLE_RATE} Hz, not {audio.sample_rate}")
        worker = self._loaded.least_busy()
        deadline = _DEADLINE_SECONDS + audio.seconds
        digest = vocabulary.digest if vocabulary else ""
        pcm = audio.samples.tobytes()
        heard: Transcript | None
        heard = await worker.call("transcribe", pcm, digest, None, deadline=deadline)
        if heard is None and vocabulary:  # new to this process, and to the disk
            heard = await worker.call(
                "transcribe", pcm, digest, _sendable(vocabulary), deadline=deadline
            )
        assert heard is not None
        return heard

    def status(self) -> Status:
        return self._loaded.status()

    async def probe(self) -> None:
        """Half a second of hum, by every process, with the words of a course if it has any."""
        for worker in self._loaded.workers:
            await worker.call(
                "transcribe", _HUM, self._prepared or "none", None, deadline=_DEADLINE_SECONDS
            )

    @property
    def _loaded(self) -> WorkerPool:
        assert self._pool is not None, "load() comes first"
        return self._pool


def _sendable(vocabulary: Vocabulary) -> Vocabulary:
    return replace(
        vocabulary,
        pronunciations=dict(vocabulary.pronunciations),
        readings=dict(vocabulary.readings),
    )


# In the child

_PIECE: Final = 6 * SAMPLE_RATE
_CUT_WINDOW: Final = 2 * SAMPLE_RATE
_LEAST: Final = SAMPLE_RATE // 10
_FAINT: Final = 30  # of 65,535, from the lowest sample to the highest
_FRAME_MS: Final = 10
_WINDOW: Final = 512
_HOP: Final = 128
_HANN: Final = np.hanning(_WINDOW + 1)[:_WINDOW]
_OVERLAP_SUM: Final = 1.5  # of the squared window, at this hop
_OVERSUBTRACTION: Final = 1.5
_LEAST_GAIN: Final = 0.3
_DICTIONARY: Final = "words.dict"
_LANGUAGE_MODEL: Final = "sentences.arpa"
_VARIANT: Final = re.compile(r"\(\d+\)$")
# What is not in the dictionary is never heard: without a vocabulary, noise must not turn into
# these in front of a class.
_COARSE: Final = re.compile(
    r"(?:(?:mother)?fuck.*|(?:bull|horse)?shit(?!ila).*|cunt.*|nigg(?:er|a).*|fag(?:got)?s?"
    r"|whores?|whorehouse|slut(?:s|ty)?|bitch.*|bastards?|(?:ass|arse)(?:es|holes?)?"
    r"|(?:jack|dumb)ass(?:es)?|dick(?:s|heads?)|cock(?:s|suckers?)|puss(?:y|ies)|piss.*|tits?"
    r"|boobs?|porn.*|dildos?|masturbat.*|blowjobs?|rap(?:e|ed|es|ing|ists?)|(?:god)?damn(?:ed|s)?"
    r"|crap(?:py)?|wank(?:ers?)?|twats?|pricks?|chinks?|gooks?|kikes?|spics?|dykes?"
    r"|retard(?:s|ed)?|hookers?|horny)(?:'s)?"
)

_PHONES: Final[Mapping[str, str]] = {
    "AA": "ɑː ɑ ɒ", "AE": "æ a", "AH": "ʌ ə ɐ", "AO": "ɔː ɔ oː", "AW": "aʊ", "AY": "aɪ",
    "B": "b", "CH": "tʃ", "D": "d", "DH": "ð", "EH": "ɛ e", "ER": "ɚ ɜː ɜ", "EY": "eɪ", "F": "f",
    "G": "ɡ", "HH": "h", "IH": "ɪ ᵻ", "IY": "iː i", "JH": "dʒ", "K": "k x", "L": "l ɬ", "M": "m",
    "N": "n", "NG": "ŋ", "OW": "oʊ əʊ o", "OY": "ɔɪ", "P": "p", "R": "ɹ r", "S": "s", "SH": "ʃ",
    "T": "t ɾ ʔ", "TH": "θ", "UH": "ʊ", "UW": "uː u", "V": "v", "W": "w", "Y": "j", "Z": "z",
    "ZH": "ʒ",
}  # fmt: skip
_ARPABET: Final[Mapping[str, str]] = {
    sound: phone for phone, sounds in _PHONES.items() for sound in sounds.split()
}
_SOUND: Final = re.compile("|".join(sorted(_ARPABET, key=len, reverse=True)))


class Recogniser:
    """The library, in the child, with a decoder for each of the vocabularies used last."""

    def __init__(self, acoustic: str, folder: Path, checkpoint: Checkpoint) -> None:
        self._acoustic = acoustic
        self._folder = folder
        self._checkpoint = checkpoint
        self._decoders: OrderedDict[str, Any] = OrderedDict()

    def prepare(self, digest: str, vocabulary: Vocabulary) -> None:
        self._decoder(digest, vocabulary)

    def transcribe(
        self, pcm: bytes, digest: str, vocabulary: Vocabulary | None
    ) -> Transcript | None:
        """None when the digest says nothing here and the vocabulary itself must be sent."""
        decoder = self._decoder(digest, vocabulary)
        if decoder is None:
            return None
        words: list[WordTime] = []
        likelihood = 0.0
        for start, piece in pieces(np.frombuffer(pcm, np.int16)):
            self._checkpoint()
            heard, probability = _recognise(decoder, without_noise(piece))
            at = start * 1000 // SAMPLE_RATE
            words += (WordTime(w.text, w.start_ms + at, w.end_ms + at) for w in heard)
            likelihood += math.log(max(probability, 1e-30)) if heard else 0.0
        confidence = min(1.0, math.exp(likelihood / len(words))) if words else 0.0
        return Transcript(" ".join(word.text for word in words), tuple(words), confidence)

    def _decoder(self, digest: str, vocabulary: Vocabulary | None) -> Any | None:
        """The decoder of a vocabulary ("" for none): from here, from the disk, or built."""
        if digest in self._decoders:
            self._decoders.move_to_end(digest)
            return self._decoders[digest]
        folder = self._folder / (digest or "none")
        decoder = self._opened(folder)
        if decoder is None and (vocabulary is not None or not digest):
            self._build(folder, vocabulary)
            decoder = self._opened(folder)
        if decoder is None:
            return None
        self._decoders[digest] = decoder
        if len(self._decoders) > _DECODERS:
            self._decoders.popitem(last=False)
        return decoder

    def _opened(self, folder: Path) -> Any | None:
        if not (folder / _DICTIONARY).is_file():
            return None
        sentences = folder / _LANGUAGE_MODEL
        options = {"lm": str(sentences)} if sentences.is_file() else {}
        try:
            decoder = Decoder(
                hmm=self._acoustic,
                dict=str(folder / _DICTIONARY),
                samprate=SAMPLE_RATE,
                loglevel="FATAL",
                **options,
            )
        except RuntimeError:  # damaged files: they are made again
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)  # used last, removed last
        return decoder

    def _build(self, folder: Path, vocabulary: Vocabulary | None) -> None:
        """Write a vocabulary's files; they appear whole, whoever else writes them at the time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        lines = _dictionary(vocabulary) if vocabulary else []
        if vocabulary and lines:
            with open(scratch / _LANGUAGE_MODEL, "w", encoding="utf-8") as file:
                _language_model(vocabulary, {_word(line) for line in lines}).write(file)
        (scratch / _DICTIONARY).write_text("".join(lines or clean_dictionary()), encoding="utf-8")
        try:
            scratch.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(scratch, ignore_errors=True)
        newest = sorted(self._folder.iterdir(), key=_last_used, reverse=True)
        for old in newest[_KEPT_VOCABULARIES:]:
            shutil.rmtree(old, ignore_errors=True)


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def _word(line: str) -> str:
    """The word that a line of a dictionary is about."""
    return _VARIANT.sub("", line.split(maxsplit=1)[0])


def _general_dictionary() -> list[str]:
    return Path(get_model_path("en-us/cmudict-en-us.dict")).read_text("utf-8").splitlines(True)


def clean_dictionary() -> list[str]:
    """The dictionary without its coarse words."""
    return [line for line in _general_dictionary() if not _COARSE.fullmatch(_word(line))]


def _dictionary(vocabulary: Vocabulary) -> list[str]:
    """Lines for the words of a vocabulary; a word that nobody can pronounce is left out."""
    wanted = {word.lower() for word in vocabulary.words}
    wanted.update(*(sentence.split() for sentence in vocabulary.sentences))
    lines = [line for line in _general_dictionary() if _word(line) in wanted]
    missing = wanted - {_word(line) for line in lines}
    for word, ipa in sorted(vocabulary.pronunciations.items()):
        if word.lower() in missing and (phones := arpabet(ipa)):
            missing.discard(word.lower())
            lines.append(f"{word.lower()} {phones}\n")
    return lines + list(_further(vocabulary, lines))


def _further(vocabulary: Vocabulary, lines: Sequence[str]) -> Iterator[str]:
    """Lines for the course's own readings of words: `tuple(2) T AH P AH L`."""
    known = {line.partition(" ")[2].strip() + " " + _word(line) for line in lines}
    readings = Counter(map(_word, lines))
    for word, ipas in sorted(vocabulary.readings.items()):
        for phones in filter(None, map(arpabet, ipas)):
            if f"{phones} {word}" not in known:
                readings[word] += 1
                variant = "" if readings[word] == 1 else f"({readings[word]})"
                yield f"{word}{variant} {phones}\n"


def _language_model(vocabulary: Vocabulary, known: Set[str]) -> Any:
    """How likely words follow each other; the course's words count once where no sentence is."""
    sentences = vocabulary.sentences or vocabulary.words
    model = ArpaBoLM(text="".join(f"<s> {sentence.lower()} </s>\n" for sentence in sentences))
    for word in known - model.grams_1.keys():
        model.grams_1[word] = 1
    model.compute()
    return model


def arpabet(ipa: str) -> str:
    """American IPA as the dictionary's phones: `tˈuːpəl` → `T UW P AH L`."""
    return " ".join(_ARPABET[sound] for sound in _SOUND.findall(re.sub("[ˈˌ]", "", ipa)))


def _recognise(decoder: Any, samples: NDArray[np.int16]) -> tuple[list[WordTime], float]:
    """The words, and the posterior probability of them all."""
    # In digital silence the decoder is sure of a word.
    if len(samples) < _LEAST or int(samples.max()) - int(samples.min()) < _FAINT:
        return [], 1.0
    decoder.reinit_feat()  # or the last speaker's voice colours what is heard
    decoder.start_utt()
    try:
        # As a whole: the sound is then normalised by its own mean, which halves the errors.
        decoder.process_raw(samples.tobytes(), False, True)
    finally:
        decoder.end_utt()
    best = decoder.hyp()
    if best is None:
        return [], 1.0
    words = [
        WordTime(
            _VARIANT.sub("", segment.word),
            segment.start_frame * _FRAME_MS,
            (segment.end_frame + 1) * _FRAME_MS,
        )
        for segment in decoder.seg()
        if segment.word[0] not in "<[+"  # <s>, <sil>, [NOISE], ++NOISE++
    ]
    return words, best.prob


def pieces(samples: NDArray[np.int16]) -> Iterator[tuple[int, NDArray[np.int16]]]:
    """The recording in pieces of at most six seconds, cut where it is quietest, with their starts.

    A piece is one step of work, after which the child looks up.
    """
    start = 0
    while len(samples) - start > _PIECE:
        end = start + _PIECE
        blocks = samples[end - _CUT_WINDOW : end].astype(np.float32).reshape(-1, _LEAST)
        quietest = int(np.argmin((blocks**2).mean(axis=1)))
        cut = end - _CUT_WINDOW + quietest * _LEAST + _LEAST // 2
        yield start, samples[start:cut]
        start = cut
    yield start, samples[start:]


def without_noise(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """The recording with its steady noise turned down: a Wiener filter.

    The noise is what the quietest tenth of the recording holds. At 15 dB of signal to noise the
    words that are wrong go from one in four to one in eight; clean speech stays as it is.
    """
    if len(samples) < _LEAST:
        return samples
    hops = _WINDOW // _HOP
    padded = np.pad(samples.astype(np.float32), (_WINDOW, 2 * _WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    spectra = np.fft.rfft(frames * _HANN)
    power = np.abs(spectra) ** 2
    loudness = power.mean(axis=1)
    audible = np.flatnonzero(loudness)
    quiet = audible[np.argsort(loudness[audible])][hops : hops + max(6, len(audible) // 10)]
    if not len(quiet):
        return samples
    noise = power[quiet].mean(axis=0) * _OVERSUBTRACTION
    gain = np.maximum(1 - noise / np.maximum(power, 1e-9), 0)
    gain[1:-1] = (gain[:-2] + gain[1:-1] + gain[2:]) / 3
    shaped = np.fft.irfft(spectra * np.maximum(gain, _LEAST_GAIN)) * _HANN
    out = np.zeros((len(shaped) + hops) * _HOP)
    for hop in range(hops):
        part = shaped[:, hop * _HOP : (hop + 1) * _HOP].reshape(-1)
        out[hop * _HOP : hop * _HOP + len(part)] += part
    kept = out[_WINDOW : _WINDOW + len(samples)] / _OVERLAP_SUM
    return np.clip(kept, -32768, 32767).astype(np.int16)
