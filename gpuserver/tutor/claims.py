"""What of a streamed answer reaches the student, cut into the sentences that may be cited.

A model's own `[1]` is taken out and remembered; links and images become their text, addresses the
host alone: what a passage smuggles into an answer leads nowhere. Code stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gpuserver.language import ends_sentence

MAX_SENTENCE: Final = 1000
"""Of a longer sentence nobody can say whether a passage supports it."""
_MAX_LABEL: Final = 160
_MAX_TARGET: Final = 400
_MAX_CODE: Final = 200
_MAX_ADDRESS: Final = 2000

_PLAIN = re.compile(r"[^\s\[\]【!<`~.?…。！？]+(?: [^\s\[\]【!<`~.?…。！？]+)*")
_WORDS = re.compile(r" ?[^\W_]+(?:[ ',-][^\W_]+)*")
_SPACE = re.compile(r"\s+")
_SIGNS = re.compile(r"(?:[.?…。！？]|!(?!\[))+[\"'”’』」）)*_]*")
_CLOSINGS = re.compile(r"[\"'”’』」）)*_]+")
_NUMBERS = r"\^?\d{1,3}(?:\s?[,，、;–-]\s?\d{1,3}){0,5}"
_MARKER = re.compile(rf"\[{_NUMBERS}\]|【{_NUMBERS}】")
_OPEN_MARKER = re.compile(r"[\[【]\^?[\d\s,，、;–-]{0,36}\Z")
_LINK = re.compile(
    rf"!?\[([^\[\]\n]{{0,{_MAX_LABEL}}})\]"
    rf"\(([^()\n]{{0,{_MAX_TARGET}}}(?:\([^()\n]{{0,99}}\)[^()\n]{{0,99}})?)\)"
)
_OPEN_LINK = re.compile(
    rf"!?\[[^\[\]\n]{{0,{_MAX_LABEL}}}"
    rf"(?:\](?:\([^()\n]{{0,{_MAX_TARGET}}}(?:\([^()\n]{{0,99}}\)?[^()\n]{{0,99}})?)?)?\Z"
)
_ADDRESS = re.compile(
    r"(?<![a-z0-9])(?:(?:https?|ftp)://|www\."
    r"|(?:h(?:t(?:tps?)?)?|htt|https?:/?|f(?:tp?)?|ftp:/?|w{1,3})\Z)",
    re.I,
)
_WHOLE_ADDRESS = re.compile(r"(?:(?:https?|ftp)://|www\.)[^\s<>\"'`)\]）】，。；、！？]*", re.I)
_NOT_LAST: Final = ".,;:!?…*_"
_HOST = re.compile(r"(?:\w+://)?(?:[^/@?#\\]*@)?([^/?#\\@]{0,80})")
# Elements that lead or load somewhere; a comparison such as `x <y` is none.
_ELEMENT = re.compile(
    r"</?(?:a|applet|area|audio|base|body|button|embed|form|frame|iframe|image|img|input|link|math"
    r"|meta|object|picture|script|source|style|svg|track|video|(?:https?|ftp|www|mailto)(?=[:.]))"
    r"(?=[\s/>:.])",
    re.I,
)
_OPEN_ELEMENT = re.compile(r"</?[a-z]{0,7}\Z", re.I)
_CODE = re.compile(rf"(`{{1,8}})(?!`)[^\n]{{0,{_MAX_CODE}}}?(?<!`)\1(?!`)")
_FENCE = re.compile(r"(`{3,16}+(?!`)|~{3,16}+(?!~))[^`\n]{0,60}\n")
_OPEN_FENCE = re.compile(r"(?:`{1,16}|~{1,16}|(?:`{3,16}+(?!`)|~{3,16}+(?!~))[^`\n]{0,60})\Z")
_WORD = re.compile(r"[^\W_]")
_CHINESE: Final = frozenset("。！？")


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence whose text has been given; its marker, if it gets one, comes here.

    `named` are the passages that the model named for it; `touches`: text follows without a space.
    """

    text: str
    named: tuple[int, ...] = ()
    touches: bool = False


Part = str | Claim


def _addresses(text: str) -> list[str]:
    return [match.group().rstrip(_NOT_LAST) for match in _WHOLE_ADDRESS.finditer(text)]


def without_links(markdown: str) -> str:
    """Links and images as their text."""
    return _LINK.sub(r"\1", markdown)


class Claims:
    """Screens one streamed answer. What comes out does not depend on how it arrives in pieces.

    Text goes out at once, but for the few characters that may be the beginning of a marker, a
    link, an address or code, and the white space before them.
    """

    def __init__(self, own: str = "", quoted: Callable[[str, int], bool] | None = None) -> None:
        """`own`: what the student wrote, whose addresses are the student's to see again.
        `quoted` says whether a passage holds a text word for word."""
        self._own = frozenset(_addresses(own))
        self._quoted = quoted
        self._rest = ""
        self._said = ""
        self._named: list[int] = []
        self._gap = ""
        self._lost_gap = ""
        self._fence = ""
        self._line = ""
        self._line_start = True
        self._last = ""
        # How far a sentence has come to its end: its sign is there, it may be over, it is over.
        self._sign = self._may_end = self._ended = False

    def feed(self, delta: str) -> list[Part]:
        """What can go out now, in order."""
        if self._goes_on(delta):
            self._said += delta
            self._line_start, self._last = False, delta[-1]
            return [delta]
        return self._scan(delta, final=False)

    def _goes_on(self, delta: str) -> bool:
        """Whether it is words and no more, in the middle of a sentence: most of an answer is."""
        if self._rest or self._fence or self._gap or self._lost_gap or len(delta) > MAX_SENTENCE:
            return False
        if self._sign or self._ended or len(self._said) > MAX_SENTENCE:
            return False
        return bool(_WORDS.fullmatch(delta)) and not _ADDRESS.search(delta)

    def flush(self) -> list[Part]:
        """What is left when the answer ends, but for white space."""
        out = self._scan("", final=True)
        self._finish(out, touches=False)
        return out

    def _scan(self, delta: str, *, final: bool) -> list[Part]:
        out: list[Part] = []
        text, at = self._rest + delta, 0
        while at < len(text):
            stop = self._fenced(text, at, out) if self._fence else self._step(text, at, out, final)
            if stop < 0:
                break
            at = stop
        self._rest = text[at:]
        return out

    def _step(self, text: str, at: int, out: list[Part], final: bool) -> int:
        """Deal with what stands at `at`; returns where that ends, -1 to wait for more."""
        closing = _CLOSINGS.match(text, at) if self._sign else None
        if closing:
            out.append(closing.group())
            self._said += closing.group()
            return closing.end()
        plain = _PLAIN.match(text, at)
        if plain:
            return self._plain(text, at, plain.end(), out, final)
        space = _SPACE.match(text, at)
        if space:
            self._space(space.group())
            return space.end()
        sign = text[at]
        if sign in "[【":
            return self._bracket(text, at, out, final)
        if sign in "`~":
            return self._code(text, at, out, final)
        if at + 1 == len(text) and sign in "!]" and not final:
            return -1
        if sign == "]":
            # What looks like the second half of a link is none with a space in it.
            half = text[at + 1 : at + 2] in {"(", ":"}
            return self._give("] " if half else "]", at + 1, out)
        if sign == "<":
            return self._element(text, at, out, final)
        if sign == "!" and text[at + 1 : at + 2] == "[":
            return self._link(text, at, out, final)
        return self._sentence_sign(text, at, out, final)

    # Text

    def _give(self, piece: str, end: int, out: list[Part]) -> int:
        """Send a piece on; returns `end`."""
        self._settle(piece[:1], out)
        out.append(piece)
        if len(self._said) <= MAX_SENTENCE:
            self._said += piece
        self._line_start = False
        self._last = piece[-1:]
        return end

    def _plain(self, text: str, at: int, stop: int, out: list[Part], final: bool) -> int:
        address = _ADDRESS.search(text, at)
        if address and address.start() == at and self._last.isascii() and self._last.isalnum():
            # The letters of the same word have gone out already: it is no address.
            address = _ADDRESS.search(text, at + 1)
        if address and address.start() < stop:
            begin = address.start()
            if begin > at:
                return self._give(text[at:begin], begin, out)
            whole = _WHOLE_ADDRESS.match(text, at)
            if whole or not final:
                return self._address(text, at, whole, out, final)
        return self._give(text[at:stop], stop, out)

    def _address(
        self, text: str, at: int, whole: re.Match[str] | None, out: list[Part], final: bool
    ) -> int:
        if whole is None:
            return -1
        if whole.end() == len(text) and not final and whole.end() - at < _MAX_ADDRESS:
            return -1
        address = whole.group().rstrip(_NOT_LAST)
        end = at + len(address)
        if address in self._own:
            return self._give(address, end, out)
        host = _HOST.match(address)
        # The sign that closes an address in angle brackets goes with them.
        end += text[end : end + 1] == ">"
        return self._give(host.group(1) if host else "", end, out)

    def _space(self, run: str) -> None:
        if self._sign:
            self._may_end, self._sign = True, False
        if "\n" in run:
            self._ended = self._ended or bool(_WORD.search(self._said))
            self._line_start = True
        # Of white space nobody needs more than that.
        self._gap = (self._gap + run)[-64:]
        self._last = ""

    def _sentence_sign(self, text: str, at: int, out: list[Part], final: bool) -> int:
        match = _SIGNS.match(text, at)
        signs = match.group() if match else "!"
        if len(signs) > 1 and signs.endswith("!") and at + len(signs) == len(text) and not final:
            # An image may begin there.
            signs = signs[:-1]
        over = self._ended and not self._gap
        if not over:
            self._settle(signs[:1], out)
        out.append(signs)
        self._said += signs
        self._line_start, self._last = False, ""
        self._sign = True
        if not _CHINESE.isdisjoint(signs):
            self._ended = True
        return at + len(signs)

    def _settle(self, following: str, out: list[Part]) -> None:
        """Text follows: decide whether a sentence has ended, and give its white space."""
        if self._may_end and not self._ended:
            *others, word = self._said.rsplit(None, 1) or [""]
            before = f"- {word}" if others else word
            self._ended = ends_sentence(before.rstrip("\"'”’』」）)*_"), following)
        if self._lost_gap and not self._gap and (following.isalnum() or following in "([\"'`*_“‘"):
            self._gap = self._lost_gap
        if self._ended:
            self._finish(out, touches=not self._gap)
        if self._gap:
            out.append(self._gap)
            if self._said:
                self._said += self._gap
        self._gap = self._lost_gap = ""
        self._sign = self._may_end = False

    def _finish(self, out: list[Part], *, touches: bool) -> None:
        """The sentence is over."""
        said = self._said.strip()
        if said and len(self._said) <= MAX_SENTENCE:
            out.append(Claim(said, tuple(dict.fromkeys(self._named)), touches))
        self._said = ""
        self._named.clear()
        self._ended = self._may_end = self._sign = False

    # Markers and links

    def _bracket(self, text: str, at: int, out: list[Part], final: bool) -> int:
        marker = _MARKER.match(text, at)
        if marker and text[marker.end() : marker.end() + 1] != "(":
            if marker.end() == len(text) and not final:
                return -1
            self._note([int(n) for n in re.findall(r"\d+", marker.group())], out)
            return marker.end()
        if not final and _OPEN_MARKER.match(text, at):
            return -1
        return self._link(text, at, out, final)

    def _note(self, numbers: list[int], out: list[Part]) -> None:
        """The model names passages for what it has said."""
        self._last = ""
        quoted = self._quoted is not None and any(self._quoted(self._said, n) for n in numbers)
        if quoted:
            # Also in the middle of a sentence: what the model wrote so far is the passage's own.
            self._named += numbers
        if quoted or (self._ended and "\n" in self._gap):
            self._finish(out, touches=False)
        if not quoted:
            self._named += numbers
        if "\n" not in self._gap:
            self._gap, self._lost_gap = "", self._gap or self._lost_gap

    def _link(self, text: str, at: int, out: list[Part], final: bool) -> int:
        link = _LINK.match(text, at)
        if link:
            target, _, _ = link.group(2).strip().partition(" ")
            if target.strip("<>") in self._own and not link.group().startswith("!"):
                return self._give(link.group(), link.end(), out)
            label = link.group(1)
            # It is read again: an address may be its own label.
            inner = Claims(" ".join(self._own))
            shown = "".join(p for p in (*inner.feed(label), *inner.flush()) if isinstance(p, str))
            return self._give(shown, link.end(), out) if shown else link.end()
        if not final and _OPEN_LINK.match(text, at):
            return -1
        if text[at] == "!":
            return self._sentence_sign(text, at, out, final)
        return self._give(text[at], at + 1, out)

    def _element(self, text: str, at: int, out: list[Part], final: bool) -> int:
        if not final and (len(text) - at < 2 or _OPEN_ELEMENT.match(text, at)):
            return -1
        if _ELEMENT.match(text, at):
            self._last = ""
            return at + 1
        return self._give("<", at + 1, out)

    # Code

    def _code(self, text: str, at: int, out: list[Part], final: bool) -> int:
        if self._line_start and len(self._gap.rpartition("\n")[2]) <= 3:
            fence = _FENCE.match(text, at)
            if fence:
                self._finish_line(out)
                self._fence, self._line = fence.group(1), ""
                out.append(fence.group())
                return fence.end()
            if not final and _OPEN_FENCE.match(text, at):
                return -1
            if final and _OPEN_FENCE.match(text, at) and text.startswith(("```", "~~~"), at):
                self._finish_line(out)
                out.append(text[at:])
                return len(text)
        if text[at] == "~" or self._last == "\\":
            return self._give(text[at], at + 1, out)
        code = _CODE.match(text, at)
        if code and (final or code.end() < len(text)):
            return self._give(code.group(), code.end(), out)
        waits = "\n" not in text[at:] and len(text) - at <= _MAX_CODE + 18
        if waits and not final:
            return -1
        run = len(text) - at - len(text[at:].lstrip("`"))
        return self._give("`" * run, at + run, out)

    def _finish_line(self, out: list[Part]) -> None:
        """A block begins: what was said before it is over."""
        self._finish(out, touches=False)
        if self._gap:
            out.append(self._gap)
        self._gap = self._lost_gap = ""

    def _fenced(self, text: str, at: int, out: list[Part]) -> int:
        """Code, up to the end of a line or of the text."""
        end = text.find("\n", at) + 1 or len(text)
        out.append(text[at:end])
        self._line = (self._line + text[at:end])[:120]
        if not text[at:end].endswith("\n"):
            return end
        line, self._line = self._line.strip(), ""
        if line.startswith(self._fence) and not line.strip(self._fence[0]):
            self._fence, self._line_start = "", True
        return end
