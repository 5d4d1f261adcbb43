"""Answers made of the course's own sentences: chosen for the question, in order, with citations."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gpuserver.language import Language, code_blocks, detect, keywords, prose, sentences
from gpuserver.providers import Delta, Passage, Place, Request
from gpuserver.smalltalk import Kind, kind_of

Intent = Literal["define", "how", "example", "why", "purpose", "compare", "other"]

MAX_SENTENCES: Final = 4
MAX_CODE_LINES: Final = 15
SIDE: Final = 0.5
"""Share of a heading's words that a comparison must name for its passage to be the other side."""

CLOSE: Final = 0.04
"""Two passages this near in similarity are quoted both: the second answers almost as often."""

# What a question wants, by the words in it; the first that matches counts.
_INTENTS: Final[Mapping[Language, Mapping[Intent, str]]] = {
    "en": {
        "compare": r"\b(?:differen(?:ce|t)|compare|versus|vs|better)\b",
        "example": r"\b(?:examples?|show me|look like|sample)\b",
        "why": r"\b(?:why|wrong|errors?|mistakes?|fails?|crash(?:es|ing)?|not work|forg[eo]t)\b"
        r"|n't work|\bhappens (?:if|when)\b",
        "purpose": r"\b(?:used? for|use of|point of|good for|purpose|when (?:do|should|to|would))\b"
        r"|\b(?:need|is|are)\b.* for\b",
        "how": r"\bhow (?:do|can|to|could|should|would|does|must)\b|\b(?:write|create|make)\b",
        "define": r"\bwhat(?:'?s| is| are| do| does)\b|\b(?:defin|explain|tell me about|meaning)",
    },
    "zh": {
        "compare": r"区别|不同|不一样|比较.*和|哪个好|相比",
        "example": r"例子|举例|示例|举个例|范例|演示",
        "why": r"为什么|为何|错误|报错|出错|错了|不对|崩溃|会怎样|会怎么样|忘了|忘记|停不下来",
        "purpose": r"有什么用|干什么用|做什么用|用途|用来做|什么时候|有何用|作用|好处",
        "how": r"怎么|怎样|如何|写法|步骤|咋",
        "define": r"是什么|什么是|什么叫|叫什么|什么意思|代表什么|表示什么|指什么|是指"
        r"|解释|介绍|含义|定义",
    },
}
# How a sentence looks that gives what is wanted.
_CUES: Final[Mapping[Language, Mapping[Intent, str]]] = {
    "en": {
        "define": r"^.{2,60}?\b(?:is|are|means?|called)\b",
        "how": r"^(?:to|write|use|put|call|type|start|open|begin|add) [a-z]"
        r"|\b(?:by writing|is called with|python writes|method (?:adds|removes|deletes|reads))\b",
        "example": r"^to [a-z]|\b(?:for example|as in|such as)\b",
        "why": r"\b(?:mistake|because|errors?|causes?|forget|wrong|so that|otherwise|to stop)\b",
        "purpose": r"\b(?:used (?:to|for|in)|useful|programs use|lets?|helps?|needed when)\b",
    },
    "zh": {
        "define": r"^.{1,24}?(?:是|叫|指|表示)",
        "how": r"时，|先写|依次|写法|可以用|就用|放进|写成|想.{1,20}，|要用|用来",
        "example": r"例如|比如|写成|时，",
        "why": r"错误|因为|所以|否则|忘|报.{0,6}错|容易|原因|停止|避免",
        "purpose": r"适合|用处|用来|常用|可以|有了|就要用|就需要|方便|作用",
    },
}
_WANTED: Final[Mapping[Intent, tuple[Intent, ...]]] = {
    "define": ("define",), "compare": ("define",), "how": ("how",),
    "example": ("define", "example"), "why": ("why",), "purpose": ("purpose",), "other": (),
}  # fmt: skip
_WITH_CODE: Final[frozenset[Intent]] = frozenset({"how", "example"})
_LENGTH: Final[Mapping[Intent, int]] = {
    "define": 3, "compare": 4, "how": 3, "example": 2, "why": 3, "purpose": 2, "other": 3,
}  # fmt: skip

NOT_COVERED: Final[Mapping[Language, str]] = {
    "en": "The course material does not cover this, so I can't answer it reliably. "
    "Please ask me another question about the course.",
    "zh": "课程资料里没有讲到这个内容，所以我不能给出可靠的回答。欢迎再问一个和课程有关的问题。",
}
_NEAREST: Final[Mapping[Language, str]] = {
    "en": "The course material does not clearly answer this, so I can't answer it reliably. "
    "What comes nearest is {names}; have a look there, or ask me in other words.",
    "zh": "课程资料里没有明确回答这个问题，所以我不能给出可靠的回答。"
    "最接近的内容是{names}，你可以看看那里，或者换个说法再问我。",
}
_NAMED: Final = 2
"""Nearest passages that are named; a list read aloud helps nobody."""
_NAME_CHARACTERS: Final = 80
_OTHER_LANGUAGE: Final[Mapping[Language, str]] = {
    "en": "The course material on this is in Chinese:",
    "zh": "这部分课程资料只有英文：",
}
_NOTHING_SAID: Final[Mapping[Language, str]] = {
    "en": "I have not said anything yet. What would you like to know?",
    "zh": "我还没有说过什么。你想了解什么？",
}
_REPLIES: Final[Mapping[Language, Mapping[Kind, str]]] = {
    "en": {
        "help": "I answer questions about the course from its own material and show where each "
        "answer comes from. Ask me what something is, how to do it, or why something goes wrong.",
        "identity": "I am the tutor of this course, a computer program. "
        "I answer questions from the course material.",
        "wellbeing": "I am a program, so I am always ready to work. What would you like to learn?",
        "goodbye": "Goodbye, and good luck with your learning!",
        "thanks": "You are welcome! Do you have another question?",
        "greeting": "Hello! What would you like to know about the course?",
        "acknowledgement": "All right. Ask me whenever you have a question.",
    },
    "zh": {
        "help": "我根据课程资料回答问题，并标明答案的出处。"
        "你可以问我某个概念是什么、怎么做，或者为什么会出错。",
        "identity": "我是这门课程的导师，是一个计算机程序。我根据课程资料回答问题。",
        "wellbeing": "我是一个程序，随时都可以开始。你想学点什么？",
        "goodbye": "再见，祝你学习顺利！",
        "thanks": "不客气！还有别的问题吗？",
        "greeting": "你好！关于这门课程，你想了解什么？",
        "acknowledgement": "好的。有问题随时问我。",
    },
}
_SECTION = re.compile(r"^\d+(?:\.\d+)+\s+")  # read aloud it says nothing
_NO_NAME = re.compile(r"[\[\]()<>{}*_`|“”《》]|https?://\S*|www\.\S*")
_ITEM = re.compile(r"(?:[-*+]|\d{1,3}[.)])\s")
_CELL = re.compile(r"(?<!\\)\|")
_MARKER = re.compile(r"[ \t]*\[\d{1,3}\]")


class ExtractiveLLM:
    """`LLM` and `Runtime`. It has no model: it says what stands in the passages, or a fixed reply.

    So it invents nothing, costs about a millisecond, and can't rephrase.
    """

    def __init__(self, model: str, place: Place) -> None:
        pass

    def load(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        kind = kind_of(request.question, request.language)
        if kind:
            pieces = _small_talk(kind, request)
        elif request.passages:
            pieces = _answer(request)
        else:
            # Whole: a heading in it may look like the end of a sentence.
            pieces = iter([not_covered(request)])
        before = ""
        for piece in pieces:
            yield Delta(_glue(before, piece) + piece)
            before = piece


def not_covered(request: Request) -> str:
    """What is said where no passage surely answers, with the headings that are near."""
    names = dict.fromkeys(name for passage in request.near if (name := _name(passage)))
    if not names:
        return NOT_COVERED[request.language]
    opening, closing, between = ("“", "”", " and ") if request.language == "en" else "《》和"
    named = between.join(f"{opening}{name}{closing}" for name in list(names)[:_NAMED])
    return _NEAREST[request.language].format(names=named)


def _name(passage: Passage) -> str:
    """The last step of its heading, or its document, as one plain line; "" if that says nothing."""
    heading = _SECTION.sub("", passage.heading.rsplit(" › ", 1)[-1])
    return _plain(heading) or _plain(passage.document)


def _plain(text: str) -> str:
    return " ".join(_NO_NAME.sub(" ", text).split())[:_NAME_CHARACTERS]


def _glue(before: str, piece: str) -> str:
    """What goes between two pieces."""
    if not before or piece.startswith("\n"):
        return ""
    items = bool(_ITEM.match(before)) + bool(_ITEM.match(piece))
    if items:
        # The items of a list stand on lines of their own.
        return "\n" * (3 - items)
    if before.endswith(("```", "~~~")):
        # A code block begins and ends on lines of its own.
        return "\n\n"
    return "" if before.endswith(("。", "！", "？", "：")) else " "


# Small talk


def _small_talk(kind: Kind, request: Request) -> Iterator[str]:
    if kind != "repeat":
        yield from sentences(_REPLIES[request.language][kind])
        return
    said = [message.content for message in request.messages if message.role == "assistant"]
    # Without its markers: the passages they point to do not come with this answer.
    last = _MARKER.sub("", said[-1]).strip() if said else ""
    yield from _pieces(last) if last else sentences(_NOTHING_SAID[request.language])


def _pieces(markdown: str) -> Iterator[str]:
    """A whole text, sentence by sentence, code blocks in their places."""
    rest = markdown
    for block in code_blocks(markdown):
        before, _, rest = rest.partition(block)
        yield from sentences(before)
        yield f"\n\n{block}"
    yield from sentences(rest)


# Answers


@dataclass(frozen=True, slots=True)
class _Sentence:
    """`number` is the passage's in the request, from 1; `place` counts in the passage, from 0."""

    number: int
    place: int
    text: str
    words: frozenset[str]


def _answer(request: Request) -> Iterator[str]:
    question_language = detect(request.question, request.language)
    intent = _intent(request.question, question_language)
    words = frozenset(keywords(request.question))
    candidates = [
        _Sentence(number, place, text, frozenset(keywords(text)))
        for number, passage in _relevant(request.passages, words, intent)
        for place, text in enumerate(_said(passage))
    ]
    language = request.passages[0].language
    ranked = _ranked(candidates, language, words, intent)
    if language != request.language:
        yield _OTHER_LANGUAGE[request.language]
    for sentence in _choose(candidates, ranked, intent):
        yield f"{sentence.text} [{sentence.number}]"
    if intent in _WITH_CODE or not ranked:
        yield from _code(request.passages[ranked[0].number - 1 if ranked else 0])


def _said(passage: Passage) -> Iterator[str]:
    """What a passage says, sentence by sentence; of a table its rows, without their bars."""
    for text in sentences(prose(passage.text)):
        if text.startswith("|"):
            cells = [cell.strip().replace("\\|", "|") for cell in _CELL.split(text)]
            text = ", ".join(cell for cell in cells if cell.strip("-: "))
        if text and not text.startswith("#"):
            yield text


def _intent(question: str, language: Language) -> Intent:
    for intent, pattern in _INTENTS[language].items():
        if re.search(pattern, question.lower().replace("’", "'")):
            return intent
    return "other"


def _relevant(
    passages: Sequence[Passage], question: frozenset[str], intent: Intent
) -> Sequence[tuple[int, Passage]]:
    """The passages to quote, each with its number: the first, and at times one more.

    For a comparison that is the other side: a passage whose heading names what the question names
    and the first does not. Otherwise it is the second where the search hardly preferred the first.
    """
    first = passages[0]
    if intent != "compare":
        close = [p for p in passages[1:2] if p.language == first.language and _tied(first, p)]
        return [(1, first), *((2, passage) for passage in close)]
    named = question - frozenset(keywords(first.heading))
    best, share = None, SIDE
    for number, passage in enumerate(passages[1:], start=2):
        heading = frozenset(keywords(passage.heading))
        fits = len(heading & named) / len(heading) if heading else 0.0
        if passage.language == first.language and fits >= share and not (best and fits == share):
            best, share = (number, passage), fits
    return [(1, first), best] if best else [(1, first)]


def _tied(first: Passage, second: Passage) -> bool:
    # A similarity of 0 is one that nobody has measured.
    return bool(second.similarity) and first.similarity - second.similarity < CLOSE


def _ranked(
    candidates: Sequence[_Sentence], language: Language, question: frozenset[str], intent: Intent
) -> list[_Sentence]:
    """The sentences that answer best first."""
    held = Counter(word for sentence in candidates for word in sentence.words)
    # Sorting is stable: of two that are worth the same, the one that comes first stays first.
    return sorted(
        candidates,
        key=lambda sentence: _score(sentence, language, question, held, intent),
        reverse=True,
    )


def _choose(
    candidates: Sequence[_Sentence], ranked: Sequence[_Sentence], intent: Intent
) -> list[_Sentence]:
    """The sentences to say, at most `MAX_SENTENCES`, in reading order.

    Every passage gets a sentence; the one that answers best goes first.
    """
    best = list(ranked[: _LENGTH[intent]])
    for number in {sentence.number for sentence in candidates} - {item.number for item in best}:
        best = best[: MAX_SENTENCES - 1]
        best.append(next(item for item in ranked if item.number == number))
    lead = ranked[0].number if ranked else 1
    return sorted(best, key=lambda item: (item.number != lead, item.number, item.place))


def _score(
    sentence: _Sentence,
    language: Language,
    question: frozenset[str],
    held: Mapping[str, int],
    intent: Intent,
) -> float:
    """How well a sentence answers: the question's words, the wanted form, and being first.

    Words that few sentences hold tell more: the topic itself is in nearly all of them.
    """
    total = sum(1 / math.sqrt(held.get(word, 1)) for word in question) or 1.0
    shared = sum(1 / math.sqrt(held[word]) for word in question & sentence.words)
    score = 1.5 * shared / total
    for rank, wanted in enumerate(_WANTED[intent]):
        cue = _CUES[language].get(wanted)
        if cue and re.search(cue, sentence.text.lower().replace("`", "")):
            score += 0.8 - 0.2 * rank
    if sentence.place == 0:
        # The first sentence names the topic: an answer without it hangs in the air.
        score += 1.0 if intent in {"define", "compare", "example"} else 0.35
    return score


def _code(passage: Passage) -> Iterator[str]:
    for block in code_blocks(passage.text)[:1]:
        if block.count("\n") <= MAX_CODE_LINES + 1:
            yield f"\n\n{block}"
