"""Words and mouth shapes of a voice that does not tell when they sound: bounded estimates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpuserver.providers import Speech
from gpuserver.providers.spoken_clauses import Clause, portions, words_of
from gpuserver.providers.visemes import of_ipa, of_pinyin, of_word

RATE = 16_000
PINYIN = {"你": "ni", "好": "hao", "同": "tong", "学": "xue"}


def syllables(run: str) -> Sequence[str]:
    return [PINYIN.get(character, "a") for character in run]


def sound(ms: int, *, silent_first: int = 0, silent_last: int = 0) -> NDArray[np.int16]:
    samples = np.full(ms * RATE // 1000, 3000, np.int16)
    samples[: silent_first * RATE // 1000] = 0
    samples[len(samples) - silent_last * RATE // 1000 :] = 0
    return samples


def spoken(text: str, *stretches: NDArray[np.int16]) -> list[Speech]:
    clause = Clause(words_of(text, syllables), RATE)
    last = len(stretches) - 1
    return [clause.add(x, last=index == last) for index, x in enumerate(stretches)]


def test_words_are_slices_of_the_text_and_longer_ones_last_longer() -> None:
    (speech,) = spoken("A photosynthesis, “yes”! 你好", sound(2000))
    assert [word.text for word in speech.words] == ["A", "photosynthesis", "yes", "你", "好"]
    lasts = [word.end_ms - word.start_ms for word in speech.words]
    assert lasts[1] > 3 * lasts[0]
    # A pause after the comma, a longer one after the sentence.
    assert speech.words[2].start_ms - speech.words[1].end_ms > 60
    assert speech.words[3].start_ms - speech.words[2].end_ms > 100
    assert speech.words[4].start_ms == speech.words[3].end_ms


def test_words_sound_between_the_first_and_the_last_audible_sample() -> None:
    (speech,) = spoken("one two three", sound(1000, silent_first=200, silent_last=300))
    assert speech.words[0].start_ms == 200
    assert speech.words[-1].end_ms == 700
    assert [speech.visemes[0].viseme, speech.visemes[-1].viseme] == ["sil", "sil"]
    assert speech.visemes[-1].ms == 700


@pytest.mark.parametrize("ms", [100, 900, 4000])
def test_words_of_a_stream_come_with_their_sound(ms: int) -> None:
    """Spoken much quicker and much slower than was thought."""
    text = "we learn about light and water today"
    pieces = spoken(text, sound(ms), sound(ms), sound(ms, silent_last=ms // 2))
    assert " ".join(word.text for piece in pieces for word in piece.words) == text
    for piece in pieces:
        assert all(0 <= w.start_ms <= w.end_ms <= ms for w in piece.words)
    assert pieces[-1].words[-1].end_ms == ms - ms // 2
    assert pieces[-1].visemes[-1].viseme == "sil"


def test_a_stream_that_begins_in_silence() -> None:
    pieces = spoken("one two", sound(300, silent_first=300), sound(400, silent_first=100))
    assert pieces[0].words == ()
    assert [mark.viseme for mark in pieces[0].visemes] == ["sil"]
    assert pieces[1].words[0].start_ms == 100


def test_what_was_measured_serves_the_next_clause() -> None:
    clause = Clause(words_of("one two three", syllables), RATE)
    clause.add(sound(6000), last=True)
    slow = clause.unit_ms
    clause = Clause(words_of("one two three", syllables), RATE)
    clause.add(sound(600), last=True)
    assert slow == pytest.approx(10 * clause.unit_ms)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet=st.sampled_from("ab z9你好,.!?— \n'”"), max_size=60),
    stretches=st.lists(st.tuples(st.integers(0, 500), st.booleans()), min_size=1, max_size=5),
)
def test_times_rise_and_stay_within_the_sound(text: str, stretches: list[tuple[int, bool]]) -> None:
    pieces = spoken(text, *(sound(ms, silent_first=0 if loud else ms) for ms, loud in stretches))
    at, times, marks = 0.0, [0.0], [-1.0]
    for piece in pieces:
        times += [at + x for word in piece.words for x in (word.start_ms, word.end_ms)]
        marks += [at + mark.ms for mark in piece.visemes]
        at += len(piece.pcm) * 500 / RATE
    assert all(b >= a - 2 for a, b in zip(times, times[1:], strict=False))
    assert times[-1] <= at + 1
    assert marks == sorted(marks)
    assert len([w for p in pieces for w in p.words]) == len(words_of(text, syllables))


def test_a_long_clause_is_cut_between_words() -> None:
    clause = "One two, three. " * 40
    cut = list(portions(clause, 50))
    assert "".join(cut).replace(" ", "") == clause.replace(" ", "")
    assert all(len(portion) <= 50 for portion in cut)
    assert all(portion.rstrip().endswith(("One", "two,", "three.")) for portion in cut)
    assert [len(portion) for portion in portions("x" * 120, 50)] == [50, 50, 20]
    assert list(portions("  ", 50)) == []


def test_mouth_shapes() -> None:
    assert of_word("Think") == ["TH", "I", "nn", "kk"]
    assert of_word("phone") == ["FF", "O", "nn"]
    assert of_word("the") == ["TH", "E"]
    assert of_pinyin("zhong") == ["CH", "O", "nn"]
    assert of_ipa("həlˈoʊ") == ["E", "nn", "O", "U"]
    assert of_word("水") == []
