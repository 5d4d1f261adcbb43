"""What Whisper is told before it listens, and what is made of the tokens it writes."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gpuserver.language import HAN, Language
from gpuserver.providers import Vocabulary, WordTime

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""The token ids of each text."""


# What it is told

CONTEXT: Final = 64
"""Tokens. In a batch all must have as many: CTranslate2 wants them to start speaking together."""
_HOT_TOKENS: Final = 40
_MOST_WORDS: Final = 20_000
# It goes on in the style of what seems to have been said before: whole sentences, and Chinese in
# simplified characters, between which its <|zh|> does not choose.
STYLE: Final[Mapping[Language, str]] = {
    "en": "Good morning, and welcome to the lesson. I would like to ask a question, because I did "
    "not understand everything you explained to us. Could you please help me with it? What I want "
    "to know is how this works, and when I should use it. Let me say it in my own words.",
    "zh": "老师好，欢迎大家来上课。我想请教一个问题，因为刚才讲的内容我还没有完全听懂，"
    "您能帮我解释一下吗？我想知道这个东西是怎么工作的，什么时候应该使用它。"
    "下面是同学用普通话提出的问题，写成简体中文。",
}
_MENTIONS: Final[Mapping[Language, tuple[str, str]]] = {
    "en": (" It is about {}.", ", "), "zh": ("会提到 {}。", "、"),
}  # fmt: skip
_LEAST_PIECES: Final = 2


def context(language: Language, hot_words: Sequence[str], encode: Encode) -> list[int]:
    """Exactly CONTEXT - 1 tokens of earlier text, the course's hot words last."""
    sentence, comma = _MENTIONS[language]
    told = STYLE[language]
    if hot_words:
        told += sentence.format(comma.join(hot_words))
    tokens = list(encode([" " + told])[0])
    while len(tokens) < CONTEXT - 1:
        tokens = tokens + tokens
    return tokens[-(CONTEXT - 1) :]


def hot_words(vocabulary: Vocabulary, encode: Encode) -> list[str]:
    """The course's own words, those that it uses most; as many as fit into 40 tokens.

    Its own are those that the model has to spell: its tokens are the words of everyday language.
    """
    count = Counter(word for sentence in vocabulary.sentences for word in sentence.split())
    words = sorted(
        dict.fromkeys([*vocabulary.readings, *vocabulary.words]),
        key=lambda word: (word not in vocabulary.readings, -count[word]),
    )[:_MOST_WORDS]
    kept: list[str] = []
    room = _HOT_TOKENS
    for word, tokens in zip(words, encode([" " + word for word in words]), strict=True):
        cost = len(tokens) + 1  # the comma
        if len(tokens) >= _LEAST_PIECES and cost <= room:
            kept.append(word)
            room -= cost
    return kept


# How sure it is

_REPETITIVE: Final = 2.4
_SILENT: Final = 0.6
_UNSURE: Final = math.exp(-1.0)
_HEARD: Final = 0.1
_DOUBTFUL: Final = 0.6


def confidence(log_probability: float, no_speech: float) -> float:
    """From 0 to 1: the mean probability of a token, less where it seems that nobody speaks.

    Whisper's own limit for words that are to be believed, a mean log-probability of -1, is 0.37
    here, just above what an interruption takes.
    """
    return min(1.0, math.exp(log_probability)) * min(1.0, 2 * (1 - no_speech))


def is_heard(text: str, log_probability: float, no_speech: float) -> bool:
    """Whether somebody said this, as well as can be told."""
    sure = confidence(log_probability, no_speech)
    if not text or sure < _HEARD:
        return False
    if no_speech > _SILENT and math.exp(log_probability) < _UNSURE:  # Whisper's own rule
        return False
    return not (is_phantom(text) and (sure < _DOUBTFUL or no_speech > 0.5))


# What Whisper has learned to write where nobody speaks: the ends of the films it was trained on.
_PHANTOM: Final = re.compile(
    """
    (?:(?:okay)?thank(?:s|you)(?:so|very)?(?:much)?(?:for(?:watching|listening|yourattention).*)?
    |(?:please)?(?:like(?:and)?)?subscribe.* |you |bye(?:bye)? |so |theend |music |applause
    |(?:subtitles|captions|transcription|transcribed|translat).*(?:by|org|com).*
    |.*(?:字幕|翻译|校对|听译|後製)(?:由|by|志愿者|志願者|组|組|提供|制作|製作).*
    |请不吝点赞.*|請不吝點贊.*|.*点赞.*订阅.*|.*打赏支持.*|.*明镜与点点.*|.*优优独播.*
    |(?:谢谢|感谢|謝謝|感謝)(?:大家|各位|您|你们)?(?:的)?(?:观看|收看|收听|觀看|聆听)?|(?:未完待续)
    )
    """,
    re.VERBOSE,
)
_SIGNS: Final = re.compile(r"[\W_]+")
_LEAST_ECHO: Final = 4


def is_phantom(text: str) -> bool:
    """Whether Whisper is known to write this of silence; it may be a part of what it was told."""
    bare = _bare(text)
    return bool(_PHANTOM.fullmatch(bare)) or (
        len(bare) >= _LEAST_ECHO and any(bare in _bare(told) for told in STYLE.values())
    )


def _bare(text: str) -> str:
    return _SIGNS.sub("", text.lower())


def is_repetitive(text: str) -> bool:
    """Whether it compresses too well for speech: the model goes round in circles."""
    data = text.encode()
    return bool(data) and len(data) / len(zlib.compress(data)) > _REPETITIVE


def without_loop(tokens: Sequence[int]) -> Sequence[int]:
    """The tokens, what is said over and over at their end said once."""
    for period in range(1, len(tokens) // 3 + 1):
        same = 0
        while same < len(tokens) - period and tokens[-1 - same] == tokens[-1 - same - period]:
            same += 1
        if same >= max(2 * period, 6):
            return tokens[: len(tokens) - same]
    return tokens


# Words and when they sound

_HAN: Final = re.compile(f"[{HAN}]")
_NO_SPACE: Final = re.compile(rf"[{HAN}，。！？、；：]")
_SHORTEST_MS: Final = 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens that make whole characters, and when they sound."""

    text: str
    start_ms: int
    end_ms: int


def words(pieces: Sequence[Piece], limit_ms: int) -> tuple[WordTime, ...]:
    """Words with the signs that belong to them, their times rising and within the recording.

    Chinese comes by the character, or a few.
    """
    groups: list[list[Piece]] = []
    text = ""
    for piece in pieces:
        if groups and not _begins(text, piece.text):
            groups[-1].append(piece)
            text += piece.text
        else:
            groups.append([piece])
            text = piece.text
    found = [
        WordTime("".join(p.text for p in group).strip(), group[0].start_ms, group[-1].end_ms)
        for group in groups
    ]
    return tuple(_rising([word for word in found if word.text], limit_ms))


def _begins(word: str, piece: str) -> bool:
    """Whether a piece is not of the same word as what comes before it."""
    if not any(map(str.isalnum, word)):
        return False  # a bracket that was opened
    if word[-1].isspace() or piece[0].isspace():
        return True
    return piece[0].isalnum() and bool(_HAN.match(piece) or _HAN.search(word[-1]))


def _rising(words: Sequence[WordTime], limit_ms: int) -> Iterator[WordTime]:
    """No word before the end of the last, and none without length."""
    end = 0
    for index, word in enumerate(words):
        # Room for those that follow.
        latest = limit_ms - _SHORTEST_MS * (len(words) - index)
        start = max(0, min(max(word.start_ms, end), latest))
        end = max(start, min(max(word.end_ms, start + _SHORTEST_MS), latest + _SHORTEST_MS))
        yield WordTime(word.text, start, end)


def glued(texts: Sequence[str]) -> str:
    """Texts that follow each other as one: Chinese without spaces."""
    whole = ""
    for text in texts:
        tight = whole and _NO_SPACE.match(whole[-1]) and _NO_SPACE.match(text)
        whole += text if tight or not whole else f" {text}"
    return whole
