"""What a student may say about a course: words and sentences for a speech recogniser."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from gpuserver.language import HAN, prose, sentences, spoken_code
from gpuserver.providers import Passage, Vocabulary

# A recogniser with a closed vocabulary hears only its own words, and prefers their company as it
# has seen it: so the words of everyday questions stand here in whole sentences.
EVERYDAY: Final = tuple(
    " ".join(sentence.split())
    for sentence in re.split(
        ";",
        """
    hello; hi there; hello teacher; hey tutor; good morning; good afternoon; good evening;
    how are you; how are you today; i am fine thank you; thank you; thank you very much; thanks;
    thanks a lot for your help; goodbye; bye bye; see you later; see you tomorrow; good night;
    who are you; what is your name; what are you called; are you a robot; are you a real person;
    what can you do; what can i ask you; what can you help me with; can you help me; i need help;
    please help me; can you repeat that; could you repeat that please; please say that again;
    can you say it again more slowly; what did you say; i did not hear you;
    sorry i did not understand that; pardon; yes; no; yes please; no thank you; okay; okay i see;
    i understand; i understand it now; i do not understand; i still do not understand this;
    i don't get it; i don't know; i have a question; i have another question about this;
    can i ask you something; that is right; that is wrong; that is too fast;
    that is too difficult for me; wait a moment please; stop; please stop; go on;
    please continue; next question please; let us go back to the last lesson;
    let's start again from the beginning; can you explain that again;
    can you explain it in another way; can you explain it with an example;
    could you explain this to a beginner; can you give me another example;
    can you show me an example; show me how to do that; show me the code;
    show me one more example please; give me a simple example; give me a hint;
    give me an exercise; tell me more about it; tell me the difference between the two;
    tell me what to do next; what is this; what is that called; what does this mean;
    what does that word mean; what does it do; what is it used for; what is it good for;
    what is the difference; what is the difference between them; what is the result;
    what is the right answer; what is the best way to do this; what is the name of this;
    what is wrong with my code; what is the problem here; what went wrong; what did i do wrong;
    what happens then; what happens next; what happens when i run it;
    what happens if i leave it out; what happens if i forget it; what should i do first;
    what should i do now; what do i need for that; what do you mean by that;
    what kinds are there; what else can i do with it; what comes after this; how do i do that;
    how do i do this in my program; how do i start; how do i begin with it; how do i fix it;
    how do i solve this problem; how do i write that down; how do i check if it is right;
    how do i get the first one; how do i get rid of it; how do i find out which one it is;
    how do i know when it is finished; how do i put two of them together;
    how do i make it bigger or smaller; how do i change it later; how do i save my work;
    how do i open it again; how do i choose one of them; how do i turn this into that;
    how do i stop it; how can i make it faster; how can i remember this;
    how can i see what is inside; how can i try it myself; how can i use it; how many are there;
    how many times does it run; how much is it; how long does it take;
    how often should i practice; how does it work; how does that help me;
    how does the computer know that; how would you do it; why is that; why is it so;
    why does it not work; why doesn't it work; why doesn't my program run; why do i get an error;
    why do i get this message; why do we need this; why do people use it; why should i use it;
    why is it important; why is this better than that; why can't i do it like this;
    when do i need it; when do i use this one and when the other one; when should i use it;
    when does it end; where do i put it; where do i write this; where can i find it;
    where does it come from; which one is better; which one should i use;
    which of them comes first; who made it; is it the same as before; is it possible to do both;
    is it always true; is that correct; is there an easier way;
    is there a shorter way to write it; is there anything else i should know;
    are there other ways to do it; are they the same; am i allowed to do that;
    do i have to write it every time; do i really need this; do you have an example for me;
    does it matter where i put it; does it work with numbers and with words;
    does the order matter; did i do it right; can i use it more than once;
    can i use both at the same time; can i do this without it; can i have more than one;
    can i see the answer; can it be empty; can you check my answer;
    can you help me with my homework; could i also do it like this; should i use this or that;
    must i always do it; will it still work; would that be a mistake; i want to learn more;
    i want to make a game; i want to practice; i would like to know how this works; i am stuck;
    i am not sure; i am new here; i think it is the second one; i tried it but it did not work;
    i forgot how to do it; i get a different result; i have seen this before;
    it says there is something wrong; it does not do anything; it is not what i want;
    my program stops too early; my program never stops; my answer is different from yours;
    nothing happens when i press enter; there is a mistake in the third line; let me try;
    let me think about it; from the first to the last; before and after; inside and outside;
    up and down left and right; on the left side and on the right side;
    at the beginning in the middle and at the end;
    one two three four five six seven eight nine ten; how do i add something;
    how do i delete something; how do i copy it or move it;
    how do i find the smallest and the largest one; how do i count the elements;
    how do i sort them; how do i compare two things; how do i join them together;
    how do i split it in half; how do i create a new one; how do i load my old work;
    how do i draw a picture; how do i print it twice; how do i test it;
    how do i pick one at random; how do i look something up; how do i skip one of them;
    how do i ask somebody for a number; how do i tell the computer what to do;
    how do i make my own; how do i get out of this; how do i go through all of them;
    how do i use a library somebody else has made; how do i turn a word into a sentence;
    what does this symbol mean; what does this line of code do; what are the rules for that;
    what are the steps; what goes here and what goes there; what is inside the brackets;
    what is missing; what if it does not exist; what if somebody types something else;
    why does my program crash; why does it sometimes go wrong; why does it show the wrong number;
    why is the first one missing; why are there two of them; is it bad to do that;
    is it hard to learn; do others do it differently; does every element need a name;
    zero eleven twelve twenty thirty fifty one hundred
    """,
    )
)
ABOUT_TERM: Final = (
    "what is {}", "what does {} do", "what does {} mean", "what is {} used for",
    "how do i use {}", "how do i write {}", "how do i make {}", "how does {} work",
    "when should i use {}", "why do we use {}", "give me an example of {}",
    "show me an example of {}", "can you explain {}", "tell me about {}",
    "i don't understand {}",
)  # fmt: skip
ABOUT_ACTION: Final = (
    "how do i {}", "how can i {}", "what happens if i {}", "why should i {}", "can i {}",
    "i want to {}", "show me how to {}",
)  # fmt: skip
ABOUT_TWO: Final = ("what is the difference between {} and {}", "should i use {} or {}")

MAX_WORD: Final = 24

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_CODE_SPAN = re.compile(r"(`+)(.+?)\1")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_HAN = re.compile(f"[{HAN}]")
_HEADING_START = re.compile(r"^(?:the words?|the)\s+", re.I)
_SUBJECT = re.compile(r"^an? ((?:[a-z]+ ){1,3}?)(?:is|means|has|can|must|may|holds)\b")
_ACTION = re.compile(r"^to ([a-z' ]{3,50})$")
_MISTAKE = re.compile(r"\b(?:mistake|error)\b[^.]*? is to ([^,.;]{3,60})[,.;]", re.I)
_SMALL: Final[list[str]] = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen",
)
_TENS: Final[list[str]] = re.findall(
    r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety"
)


def build(
    passages: Iterable[Passage],
    headings: Iterable[str],
    readings: Mapping[str, tuple[str, ...]] | None = None,
) -> Vocabulary:
    """The English words and sentences of a course and of questions about it.

    `readings` are the course's own ways to say a word, in IPA. How the others are pronounced is
    the speech engine's to add.
    """
    said: list[str] = list(EVERYDAY)
    things: list[str] = []
    actions: list[str] = []
    for passage in passages:
        if passage.language != "en":
            continue
        for sentence in sentences(prose(passage.text)):
            said.append(_normal(sentence))
            things.extend(_subjects(sentence))
            actions.extend(_actions(sentence))
    for heading in headings:
        if _HAN.search(heading):
            continue
        terms = list(_heading_terms(heading))
        said.append(_normal(heading))
        things.extend(form for term in terms for form in _forms(term))
        pairs = zip(terms, terms[1:], strict=False)
        said.extend(template.format(*pair) for pair in pairs for template in ABOUT_TWO)
    said.extend(template.format(thing) for thing in _once(things) for template in ABOUT_TERM)
    said.extend(template.format(act) for act in _once(actions) for template in ABOUT_ACTION)
    kept = tuple(_once(said))
    words = sorted({word for sentence in kept for word in sentence.split()})
    return Vocabulary(tuple(words), kept, readings=readings or {})


def _once(items: Iterable[str]) -> list[str]:
    return [item for item in dict.fromkeys(items) if item]


def _normal(text: str) -> str:
    """A text as it is said: lower-case words with one space between them, numbers as words."""
    text = _CODE_SPAN.sub(lambda match: f" {spoken_code(match.group(2), 'en')} ", text)
    text = _NUMBER.sub(lambda match: f" {_number(match.group())} ", text.replace("’", "'"))
    if not text.isascii():  # letter by letter, which takes most of the time
        letters = unicodedata.normalize("NFKD", text)
        text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(word for word in _WORD.findall(text.lower()) if len(word) <= MAX_WORD)


def _number(digits: str) -> str:
    """A number in words; numbers of more than six digits are left out."""
    whole, _, decimals = digits.partition(".")
    if len(whole) > 6 or not whole.isascii() or not decimals.isascii():
        return ""
    words = _whole(int(whole))
    if decimals:
        words += " point " + " ".join(_SMALL[int(digit)] for digit in decimals[:6])
    return words


def _whole(number: int) -> str:
    if number < 20:
        return _SMALL[number]
    if number < 100:
        ones = number % 10
        return _TENS[number // 10 - 2] + (f" {_SMALL[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    return f"{_whole(number // size)} {name}" + (f" {_whole(rest)}" if rest else "")


# What there is to ask about


def _heading_terms(heading: str) -> Iterator[str]:
    """The topics of a heading: "Modules and import" → modules, import."""
    for part in re.split(r",|\s+and\s+|\s+or\s+(?!and\b)", _HEADING_START.sub("", heading)):
        term = _normal(part)
        if term and not term.startswith(("what ", "how ", "why ", "when ")):
            yield term


def _forms(term: str) -> list[str]:
    """Ways to name a topic: "lists" → lists, a list."""
    last = term.split()[-1]
    single = term
    if last.endswith("ies") and len(last) > 4:
        single = term[:-3] + "y"
    elif last.endswith(("sses", "xes", "ches", "shes")):
        single = term[:-2]
    elif last.endswith("s") and len(last) > 3 and not last.endswith(("ss", "us", "is")):
        single = term[:-1]
    return [term, _with_article(single)]


def _with_article(noun: str) -> str:
    return f"{'an' if noun.startswith(tuple('aeiou')) else 'a'} {noun}"


def _subjects(sentence: str) -> Iterator[str]:
    """What a sentence defines: "A list is …" → a list."""
    match = _SUBJECT.match(_normal(sentence))
    if match:
        yield _with_article(match.group(1).strip())


def _actions(sentence: str) -> Iterator[str]:
    """What a sentence tells to do or not to do: "To write a list, …" → write a list."""
    match = _ACTION.match(_normal(sentence.split(",", 1)[0])) if "," in sentence else None
    if match:
        yield match.group(1)
    for mistake in _MISTAKE.finditer(sentence):
        yield _normal(mistake.group(1))
