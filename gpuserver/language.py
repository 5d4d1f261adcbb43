"""What the product knows of English and Chinese text: its language, words, sentences and code."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final, Literal, get_args

Language = Literal["en", "zh"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)

HAN: Final = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_HAN = re.compile(f"[{HAN}]")
_LATIN = re.compile(r"[A-Za-z]")
_LATIN_WORD = re.compile(r"[a-z]+")


# Words

# Operators are words of a programming course. A single sign counts only where no word or number
# touches it, so that "C#" and "50%" are not questions about comments and remainders.
_TERM = re.compile(
    f"[{HAN}]+|[a-z0-9_]+(?:[.'’][a-z0-9_]+)*|[=!<>+\\-*/%]=|//|\\*\\*|(?<![a-z0-9])[%&|#]"
)
_STOP_WORDS: Final = frozenset(
    re.findall(
        r"\S+",
        """
        a about again all allowed also am an any anything are as at be been being by can could
        did difference different do does doing done explain from get gets getting give go goes
        got had has have having he help her here him his how i into is it its just know let like
        make makes making may me mean meaning means might mine more most much must my need needs
        of on one our please really say says shall she should so some something tell than
        that the their them then there these they thing things this those to too um understand us
        use used uses using very want wants was way we were what when where which who why
        will with work works would you your
        """,
    )
)
# Longest first, so that 为什么 goes before 什么. They go before characters are paired: no pair may
# join the end of 怎么 to the beginning of a term. "Show" may be what a question is about, but not
# in "show me".
_STOP_PHRASES = re.compile(
    "|".join(
        sorted(
            re.findall(
                r"\S+",
                """
                为什么 为啥 什么时候 什么样 什么 怎么回事 怎么样 怎么办 怎么 怎样 如何 哪里 哪些
                哪个 哪儿 多少 几个 请问 可以 能不能 可不可以 是不是 有没有 要不要 会不会 是否 意思
                区别 不同 不一样 关系 一下 一点 有点 告诉 解释 说明 介绍 关于 有关 应该 需要 想要
                只想 我们 你们 他们 自己 别人 老师 同学 这个 那个 这些 那些 一个 一些 时候 东西
                现在 以后 之后 然后 一直 老是 到底 好像 的话 如果 但是 可是 不过 而且 因为 所以 比如
                还是 或者 以及 就是 干什么 干嘛 有什么 做什么
                """,
            ),
            key=len,
            reverse=True,
        )
    )
    + r"|\b[Ss]how (?:me|us)\b"
)
# They say how a sentence is built. In a longer word of a course (对象, 调用) they may say more, so
# a pair with one in it counts where it is known to be a word.
FUNCTION_CHARACTERS: Final = frozenset(
    "的了吗呢吧啊呀嘛哦我你您他她它是在有和与跟对把被让给要想能会请问里中上下就都也还又很太得地着过到从用做干叫个"
    "这那哪几么什怎啥咋只不没为以可"
)
_VOWEL = re.compile("[aeiouy]")


def detect(text: str, default: Language) -> Language:
    """The language a text is written in; `default` where it has no letters of either.

    Course terms stay English inside a Chinese question: a fifth of the letters being Chinese
    decides, and so do two Chinese characters to each English function word, which 什么是 list
    comprehension has none of.
    """
    han = len(_HAN.findall(text))
    latin = len(_LATIN.findall(text))
    if not han and not latin:
        return default
    if han * 5 >= han + latin:
        return "zh"
    function_words = sum(word in _STOP_WORDS for word in _LATIN_WORD.findall(text.lower()))
    return "zh" if han and han >= 2 * function_words else "en"


def terms(text: str) -> list[str]:
    """Index terms of a text: lower-case words, operators, Chinese characters alone and paired."""
    out: list[str] = []
    for match in _TERM.finditer(text.lower()):
        run = match.group().replace("’", "'")
        if _HAN.match(run):
            out.extend(run)
            out.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            out.append(run)
    return out


def is_han(term: str) -> bool:
    """Whether an index term is Chinese."""
    return bool(_HAN.match(term))


def stem(word: str) -> str:
    """An English word without its plural, -ing or -ed ending: equal for `loops`, `looping`, `loop`.

    The result is for comparing, not for reading: `writing` and `write` both become `writ`.
    """
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 4 and word.endswith(("xes", "shes", "ches", "sses")):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        base = word.removesuffix(ending)
        if base != word and len(base) >= 3 and _VOWEL.search(base):
            doubled = len(base) > 3 and base[-1] == base[-2] and base[-1] not in "lsz"
            word = base[:-1] if doubled else base
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def keywords(text: str, compounds: Collection[str] = ()) -> list[str]:
    """The terms of a text that say what it is about: question and function words left out.

    English words come stemmed; of `list.append` the parts come too. Chinese pairs with a function
    character come only when they are among `compounds`. Question and material are compared by
    these.
    """
    out: list[str] = []
    for term in terms(_STOP_PHRASES.sub(" ", text)):
        if is_han(term):
            if term in compounds or FUNCTION_CHARACTERS.isdisjoint(term):
                out.append(term)
            continue
        if "'" in term:
            # "what's", "can't": the part before the apostrophe decides.
            term = term.split("'", 1)[0]
        if term in _STOP_WORDS:
            continue
        parts = [part for part in re.split(r"[._]+", term) if part]
        if len(parts) > 1 or (parts and parts != [term]):
            out.append(term)
        out.extend(stem(part) for part in parts if part not in _STOP_WORDS)
        if not parts:
            out.append(term)
    return out


# Sentences

_CODE_SPAN = re.compile(r"(`+)(?!`)[^\n]*?(?<!`)\1(?!`)")
# A sentence ends at Chinese final punctuation anywhere, at Western punctuation before white space
# (so "3.14" and "list.append" stay whole), and at a line break.
_SENTENCE_END = re.compile(r"[。！？]+[”』」）\"')\]*_]*|[.!?…]+[\"'’”)\]*_]*(?=\s|$)|\n+")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|approx|Mr|Mrs|Ms|Dr|Prof|St|Fig)|\b[A-Z]|(?:^|\n)[ \t]*\d{1,3})\.$"
)
_ETC = re.compile(r"\b(?:etc|No)\.$")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)[^`\n]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$\n?|\Z)", re.S | re.M)
_BLOCK_START = re.compile(r"\s*(?:[-*+]\s|\d{1,3}[.)]\s|#{1,6}\s|>|\|)")


def ends_sentence(before: str, after: str) -> bool:
    """Whether a sentence is over after `before`, which ends in final punctuation.

    `after` is what follows the white space (its first character is enough). Abbreviations,
    initials and the number of a list item end no sentence; "etc." and "No." do before a capital.
    """
    if _ABBREVIATION.search(before):
        return False
    return not (_ETC.search(before) and (after[:1].islower() or after[:1].isdigit()))


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text in order, stripped, with their final punctuation."""
    # Code is hidden while looking for ends: `print("Hi. ")` is one word.
    hidden = _CODE_SPAN.sub(lambda match: "x" * len(match.group()), text)
    start = 0
    for match in _SENTENCE_END.finditer(hidden):
        piece = hidden[start : match.end()].rstrip()
        if not match.group().startswith("\n") and not ends_sentence(
            piece, hidden[match.end() :].lstrip()
        ):
            continue
        if piece:
            yield text[start : match.end()].strip()
        start = match.end()
    if text[start:].strip():
        yield text[start:].strip()


def prose(markdown: str) -> str:
    """A Markdown text without its code blocks, the lines of a paragraph joined into one."""
    joined: list[str] = []
    for line in _FENCE.sub("\n\n", markdown).splitlines():
        text = line.strip()
        if text and joined and joined[-1] and not _BLOCK_START.match(text):
            # Chinese is written without a space where two lines meet.
            glue = "" if _HAN.match(text) and _HAN.match(joined[-1][-1]) else " "
            joined[-1] += glue + text
        else:
            joined.append(text)
    return "\n".join(line for line in joined if line)


def code_blocks(markdown: str) -> list[str]:
    """The fenced code blocks of a Markdown text, fences included."""
    found = _FENCE.finditer(markdown)
    return [match.group().strip("\n") for match in found if match.group(2).strip()]


# Spoken questions


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\S+", text))


_ASKING: Final = _words("what which who whom whose where when why how")
_AUXILIARIES: Final = _words(
    """
    am are can could did do does had has have is may might shall should was were will would
    """
)
_ASKING_CHARACTERS: Final = frozenset("什么怎何哪谁几吗呢")
# After these something follows.
_LEADING_ON: Final = _AUXILIARIES | _words(
    """
    a about after also although an and any as at be because been before being between but by can't
    don't each every for from how i'd i'll i'm in if into it's its let's like many maybe my not of
    or our per so some than the their then to um uh er erm hm hmm versus well what what's when
    where whether which while who who's whose with without your
    """
)
# Where a question stands before them they may be its end: "what does it do", "what is it for".
_STRANDED: Final = _words("about are can do does for have is like")
# Between "does" or "if" and its verb.
_SUBJECTS: Final = _words("he i it she that these they this those we you")
_BEFORE_A_SUBJECT: Final = (_AUXILIARIES - {"am", "are", "is", "was", "were"}) | {
    "because", "if", "so", "when", "whether",
}  # fmt: skip
_WHOLE: Final = frozenset({"how", "what", "when", "where", "who"})
_LEADING_ON_ZH: Final = re.compile(
    "(?:因为|所以|如果|要是|假如|虽然|但是|可是|不过|而且|并且|或者|还是|以及|比如|例如|关于|对于|为了|除了|然后|那么"
    "|就是|这个|那个|一个|我想|我要|我想问|请问|想问一下|我的问题是|你能不能|你可以|能不能|可不可以|怎么|如何"
    "|[嗯呃额唔和跟与及或的把被让给在从向往比是当但而且就才还也])$"
)
# They end like that and are whole all the same.
_WHOLE_ZH: Final = re.compile("(?:(?:^|[，。、 ])[是好对]的?|是[的不]是?|不是|什么的|时候)$")


def looks_finished(text: str, language: Language) -> bool:
    """Whether somebody who pauses after these words has probably said what they wanted to.

    Words that lead on (an article, a preposition, "because", "um", 和, 如果) are not the last
    ones; nor is an opening without its matter ("how do i", 什么是). When in doubt it is not: to
    be cut off is worse than to wait.
    """
    if detect(text, language) == "zh":
        bare = re.sub(r"[\s，。！？、；：…,.!?]+$", "", text)
        return bool(bare) and (bool(_WHOLE_ZH.search(bare)) or not _LEADING_ON_ZH.search(bare))
    words = re.findall(r"[a-z0-9][a-z0-9'_-]*", text.lower().replace("’", "'"))
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in _SUBJECTS:
        return before not in _BEFORE_A_SUBJECT and words != [last]
    if before in {"is", "are"} and last == "there":
        return False
    if before in {"give", "show", "tell"} and last in {"me", "us"}:
        return False
    if last not in _LEADING_ON or words == [last] and last in _WHOLE:
        return True
    asked = not _ASKING.isdisjoint(words[:-2])
    return asked and last in _STRANDED and before not in _LEADING_ON


def asks(word: str) -> bool:
    """Whether a lower-case word or a Chinese character is one that questions are made with."""
    return word in _ASKING or word in _AUXILIARIES or word in _ASKING_CHARACTERS


# Code, read aloud

_CODE_TOKEN = re.compile(
    r"\d+(?:\.\d+)?|[^\W\d_]+|\\n|[=!<>+\-*/%]=|//|\*\*|->|[^\w\s]", re.UNICODE
)
# Between two operands, in English and in Chinese.
_SIGNS: Final[Mapping[str, tuple[str, str]]] = {
    "==": ("equals equals", "双等号"), "!=": ("not equal to", "不等于"),
    "<=": ("less than or equal to", "小于等于"), ">=": ("greater than or equal to", "大于等于"),
    "+=": ("plus equals", "加等于"), "-=": ("minus equals", "减等于"),
    "*=": ("times equals", "乘等于"), "/=": ("divided by equals", "除等于"),
    "%=": ("modulo equals", "取余等于"), "//": ("integer divided by", "整除"),
    "**": ("to the power of", "乘方"), "->": ("arrow", "箭头"), "\\n": ("backslash n", "反斜杠 n"),
    "=": ("equals", "等于"), "<": ("less than", "小于"), ">": ("greater than", "大于"),
    "+": ("plus", "加"), "-": ("minus", "减"), "*": ("times", "乘"), "/": ("divided by", "除以"),
    "%": ("modulo", "取余"), "&": ("ampersand", "和号"), "|": ("vertical bar", "竖线"),
    "#": ("hash", "井号"), "@": ("at", "艾特"), "\\": ("backslash", "反斜杠"),
    "~": ("tilde", "波浪号"), "^": ("caret", "脱字符"), "$": ("dollar", "美元符号"),
}  # fmt: skip
# The name of a sign that stands alone, as in "`()`"; some are silent in the middle of code.
_NAMES: Final[Mapping[str, tuple[str, str]]] = {
    "//": ("double slash", "双斜杠"), "**": ("double star", "双星号"),
    "=": ("equals sign", "等号"), "*": ("star", "星号"), "/": ("slash", "斜杠"),
    "%": ("percent sign", "百分号"), "<": ("less than sign", "小于号"),
    ">": ("greater than sign", "大于号"), "+": ("plus sign", "加号"), "-": ("minus sign", "减号"),
    "(": ("round brackets", "圆括号"), "[": ("square brackets", "方括号"),
    "{": ("curly brackets", "花括号"), '"': ("quotation marks", "引号"),
    "'": ("quotation marks", "引号"), ":": ("colon", "冒号"), ",": ("comma", "逗号"),
    ".": ("dot", "点"), ";": ("semicolon", "分号"), "_": ("underscore", "下划线"),
    "!": ("exclamation mark", "感叹号"), "?": ("question mark", "问号"),
}  # fmt: skip


def spoken_code(code: str, language: Language) -> str:
    """Code as words: `list.append(x)` → "list dot append x", `__init__` → "init"."""
    column = LANGUAGES.index(language)
    tokens = [token for token in _CODE_TOKEN.findall(code.replace("_", " _ ")) if token != "_"]
    if not any(token[0].isalnum() or token == "\\n" for token in tokens):
        return _named_sign(code, tokens, column)
    words: list[str] = []
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        if token[0].isalnum():
            words.append(token)
        elif token == "-" and not (before[:1].isalnum() or before in {")", "]"}):
            words.append(("minus", "负")[column])
        elif token in {"*", "**"} and not before:
            words.append(_NAMES[token][column])
        elif token in _SIGNS:
            words.append(_SIGNS[token][column])
        elif token == "." and after[:1].isalpha():
            words.append(("dot", "点")[column])
        elif token == ":" and before.isdigit() and after.isdigit():
            words.append(("to", "到")[column])
        elif token == "," and words:
            words[-1] = words[-1].removesuffix(",") + ","
    return " ".join(words).removesuffix(",")


def _named_sign(code: str, tokens: list[str], column: int) -> str:
    """The name of the first sign of a code span without words or numbers; empty for no sign."""
    for sign in [*tokens, *code]:
        names = _NAMES.get(sign) or _SIGNS.get(sign)
        if names:
            return names[column]
    return ""
