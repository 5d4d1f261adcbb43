"""What any embedding model or re-ranker is asked once: which answer belongs to which question.

The search's bars are set for MiniLM's cosines. Other models spread theirs elsewhere (E5 gives two
unrelated texts 0.76, MiniLM 0.06), and without this such a bar declines nothing. The pairs are
general knowledge and share few words, so that neither a course nor spelling helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuserver.language import LANGUAGES, Language
from gpuserver.providers import Scale

MINILM_RELATED: Final = 0.573
"""Mean cosine that MiniLM gives an English question below and its answer."""
MINILM_UNRELATED: Final = 0.062
"""Mean cosine that it gives a question and the answer to another."""
NEEDED: Final = 0.75
"""Share of the answers that a model has to find to serve a language. MiniLM finds all the English
ones, and of the Chinese ones a third, or all where a dictionary reads them to it."""

PLAIN: Final = 2.0
"""What an answer below gets on a re-ranker's scale; the best of the other texts gets as much below
0."""

PAIRS: Final[Mapping[Language, Sequence[tuple[str, str]]]] = {
    "en": (
        ("Why is the sky blue?", "Air scatters the blue part of sunlight more than the red part."),
        (
            "How long does it take the earth to go around the sun?",
            "One orbit of our planet takes a little more than 365 days.",
        ),
        (
            "What do plants need to grow?",
            "Seeds become plants when they have water, light and warm soil.",
        ),
        (
            "How can I remember new words better?",
            "Vocabulary stays in memory when it is repeated after a day and after a week.",
        ),
        ("What is a noun?", "A word that names a person, a place or a thing."),
        (
            "How is bread made?",
            "Flour, water and yeast are kneaded to a dough, which rises and is baked.",
        ),
        (
            "What is the capital of France?",
            "Paris has been the seat of the French government for centuries.",
        ),
        (
            "How do I divide one fraction by another?",
            "Turn the second fraction upside down and multiply.",
        ),
        (
            "Why do we have to sleep?",
            "At night the body rests and the brain sorts what it has learned.",
        ),
        (
            "How does a bicycle stay upright?",
            "A rider steers a little towards the side to which the bike falls.",
        ),
        ("Who wrote Romeo and Juliet?", "The tragedy of the two lovers is a play by Shakespeare."),
        (
            "How do ships float although they are made of steel?",
            "A hull pushes away water that weighs as much as the whole vessel.",
        ),
    ),
    "zh": (
        ("天空为什么是蓝色的？", "空气散射阳光中的蓝光比红光更多。"),
        ("地球绕太阳一圈要多长时间？", "我们的行星公转一周需要三百六十五天多一点。"),
        ("植物生长需要什么？", "种子有了水、光照和温暖的土壤就会长成植物。"),
        ("怎样才能更好地记住新单词？", "词汇在一天后和一周后重复，就能留在记忆里。"),
        ("什么是名词？", "表示人、地方或事物名称的词。"),
        ("面包是怎么做的？", "面粉、水和酵母揉成面团，发酵以后再烤。"),
        ("法国的首都是哪里？", "几百年来，巴黎一直是法国政府的所在地。"),
        ("一个分数怎么除以另一个分数？", "把第二个分数上下颠倒，然后相乘。"),
        ("我们为什么要睡觉？", "夜里身体休息，大脑整理学到的东西。"),
        ("自行车为什么不会倒？", "骑车的人会朝车子要倒的一边稍微转动车把。"),
        ("《罗密欧与朱丽叶》是谁写的？", "这对恋人的悲剧是莎士比亚的一部戏剧。"),
        ("船是钢做的，为什么能浮在水上？", "船身排开的水和整艘船一样重。"),
    ),
}

Embed = Callable[[Sequence[str], bool], NDArray[np.float32]]
"""Unit vectors of texts; the flag says that they are questions."""
Score = Callable[[str, Sequence[str]], NDArray[np.float32]]
"""How well each text answers a question, on a model's own scale."""


def scales(embed: Embed, languages: Iterable[Language] = LANGUAGES) -> dict[Language, Scale]:
    """How a model's cosines compare with MiniLM's, for each of the languages that it serves."""
    found: dict[Language, Scale] = {}
    for language in languages:
        pairs = PAIRS[language]
        questions = embed([question for question, _ in pairs], True)
        answers = embed([answer for _, answer in pairs], False)
        scale = _scale(questions @ answers.T)
        if scale is not None:
            found[language] = scale
    return found


def answer_scales(score: Score, told: Callable[[float], None]) -> dict[Language, Scale]:
    """Where a re-ranker's scores part answers from other texts, for each language that it serves.

    `told` hears which share of the questions is done.
    """
    found: dict[Language, Scale] = {}
    for number, (language, pairs) in enumerate(PAIRS.items()):
        answers = [answer for _, answer in pairs]
        scores: list[NDArray[np.float32]] = []
        for question, _ in pairs:
            told((number + len(scores) / len(pairs)) / len(PAIRS))
            scores.append(score(question, answers))
        scale = _answer_scale(np.stack(scores))
        if scale is not None:
            found[language] = scale
    return found


def _scale(cosines: NDArray[np.float32]) -> Scale | None:
    """From the cosine of each question (row) to each answer (column), in the same order."""
    own = np.eye(len(cosines), dtype=bool)
    related, unrelated = float(cosines[own].mean()), float(cosines[~own].mean())
    if not _finds(cosines) or related <= unrelated:
        return None
    factor = (MINILM_RELATED - MINILM_UNRELATED) / (related - unrelated)
    return Scale(factor, MINILM_UNRELATED - factor * unrelated)


def _answer_scale(scores: NDArray[np.float32]) -> Scale | None:
    """From the score of each answer (column) to each question (row), in the same order.

    The bar lies midway between the answers and, of each question, the best of all else: a search
    looks at several texts, and the best of them decides.
    """
    own = np.eye(len(scores), dtype=bool)
    right = float(scores[own].mean())
    wrong = float(np.where(own, -np.inf, scores).max(axis=1).mean())
    if not _finds(scores) or right <= wrong:
        return None
    factor = 2 * PLAIN / (right - wrong)
    return Scale(factor, -factor * (right + wrong) / 2)


def _finds(scores: NDArray[np.float32]) -> bool:
    """Whether enough questions (rows) have the highest number at their own answer (column)."""
    return bool((scores.argmax(axis=1) == np.arange(len(scores))).mean() >= NEEDED)
