"""Recognising small talk: greetings, thanks, goodbyes and questions about the tutor itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from gpuserver.language import HAN, Language, detect

# In order of weight: "hello, can you repeat that" asks for a repetition.
Kind = Literal[
    "repeat", "help", "identity", "wellbeing", "goodbye", "thanks", "greeting", "acknowledgement"
]

_PHRASES: Final[Mapping[Language, Mapping[Kind, str]]] = {
    "en": {
        "repeat": """can you repeat that | could you repeat that | can you repeat | repeat that |
            repeat it | repeat | say that again | say it again | can you say that again |
            could you say that again | can you say it again | could you say it again |
            come again | once again | once more | one more time | pardon | pardon me |
            what did you say | what was that | what | i did not hear you | i did not hear that |
            i didnt hear you | i didnt hear that | i did not catch that | i didnt catch that |
            can you repeat the answer | repeat the answer | repeat your answer |
            repeat the last answer | can you repeat it | could you repeat it |
            would you repeat that | can you repeat your answer""",
        "help": """what can you do | what can i ask | what can i ask you |
            what can you help me with | how can you help me | how can you help |
            what can you teach me | what do you know | what can i learn | what can i learn here |
            what can i learn from you | what should i ask | what are you able to do |
            what do you do | help | help me | can you help me | can you help |
            could you help me | i need help | i need some help | what can we talk about |
            what topics do you know | what can i do here | i have a question |
            can i ask you something | can i ask a question | can i ask you a question |
            may i ask a question | i have another question""",
        "identity": """who are you | what are you | what is your name | whats your name |
            your name | what are you called | tell me your name | who is this |
            who am i talking to | are you a robot | are you a human | are you human |
            are you real | are you a person | are you a real person | are you an ai |
            are you a computer | introduce yourself | tell me about yourself |
            can you introduce yourself""",
        "wellbeing": """how are you | how are you doing | how do you do | how is it going |
            hows it going | are you well | are you okay | how do you feel | how are things |
            whats up | what is up""",
        "goodbye": """goodbye | good bye | bye | bye bye | see you | see you later |
            see you tomorrow | see you soon | see you next time | farewell | good night |
            have a nice day | have a good day | until next time | talk to you later |
            i have to go | i have to go now | that is all | thats all | that is all for today""",
        "thanks": """thank you | thanks | thank you so much | many thanks |
            thanks for your help | thank you for your help | thanks for the help |
            thank you for the help | cheers | thank you for helping me | i appreciate it |
            thank you for the answer""",
        "greeting": """hello | hi | hey | hiya | good morning | good afternoon | good evening |
            good day | greetings | howdy | welcome | nice to meet you | pleased to meet you""",
        "acknowledgement": """ok | okay | yes | no | yeah | yep | nope | i see | i understand |
            i understand now | i understand it now | got it | i got it | understood | great |
            good | very good | nice | cool | perfect | excellent | wonderful | awesome |
            all right | alright | fine | right | sure | that helps | that helped |
            that is clear | that makes sense | makes sense | interesting | i know |
            that is right | no problem | sorry | never mind | nothing | not now | no thank you |
            no thanks""",
    },
    "zh": {
        "repeat": """再说一遍 | 再说一次 | 再讲一遍 | 再讲一次 | 重复一遍 | 重复一下 | 重复 |
            重说一遍 | 没听清 | 没听清楚 | 没听见 | 没听到 | 你说什么 | 你刚才说什么 |
            刚才说什么 | 再来一遍 | 再来一次 | 再重复一遍 | 再重复一次 | 什么""",
        "help": """你能做什么 | 你可以做什么 | 你会做什么 | 你会什么 | 你能干什么 |
            你能帮我什么 | 你能帮我做什么 | 你可以帮我做什么 | 我可以问什么 | 我能问什么 |
            我可以问你什么 | 我能问你什么 | 可以问什么 | 能问什么 | 你知道什么 | 你懂什么 |
            你能教我什么 | 我能学什么 | 我可以学什么 | 帮帮我 | 帮助 | 帮我 | 我需要帮助 |
            我有问题 | 我有个问题 | 我有一个问题 | 可以问你问题吗 | 我想问个问题 | 能帮我吗 |
            可以帮我吗 | 你能帮我吗 | 你可以帮我吗""",
        "identity": """你是谁 | 您是谁 | 你叫什么 | 你叫什么名字 | 您叫什么名字 | 您贵姓 |
            你的名字 | 你的名字是什么 | 你是什么 | 你是机器人吗 | 你是真人吗 | 你是人吗 |
            你是老师吗 | 自我介绍 | 介绍一下你自己 | 你是人工智能吗""",
        "wellbeing": """你好吗 | 您好吗 | 你怎么样 | 最近怎么样 | 最近好吗 | 你还好吗 |
            你过得怎么样 | 近来可好 | 你今天怎么样 | 你今天好吗""",
        "goodbye": """再见 | 拜拜 | 拜 | 下次见 | 回头见 | 明天见 | 回见 | 晚安 | 我走了 |
            我要走了 | 我先走了 | 下课 | 就这样 | 今天就到这里 | bye | byebye | goodbye""",
        "thanks": """谢谢 | 谢谢你 | 谢谢您 | 谢谢老师 | 多谢 | 感谢 | 谢了 | 谢谢你的帮助 |
            谢谢帮助 | 辛苦 | 辛苦了 | 麻烦你了 | thanks | thank you""",
        "greeting": """你好 | 您好 | 大家好 | 老师好 | 早上好 | 早安 | 早 | 上午好 | 中午好 |
            下午好 | 晚上好 | 嗨 | 哈喽 | 哈罗 | 喂 | 很高兴认识你 | 初次见面 | hello | hi | hey""",
        "acknowledgement": """好 | 好的 | 好吧 | 行 | 对 | 是 | 是的 | 不是 | 不 | 没有 | 没事 |
            没问题 | 没关系 | 明白 | 明白了 | 懂了 | 知道 | 知道了 | 了解 | 清楚 | 清楚了 |
            我懂了 | 我明白了 | 我知道了 | 原来如此 | 太好了 | 很好 | 真棒 | 不错 | 棒 | 厉害 |
            有道理 | 对不起 | 不好意思 | ok | okay | yes | no""",
    },
}  # fmt: skip
# Words that change nothing: "um, hello there teacher".
_FILLERS: Final[Mapping[Language, str]] = {
    "en": """please | there | teacher | tutor | sir | madam | miss | um | uh | er | ah | oh |
        well | so | then | now | and | very much | a lot | again | today | everyone | my friend |
        dear | to you | for me | more slowly | slowly | just | i am sorry | im sorry |
        excuse me | the""",
    "zh": """请 | 请你 | 请您 | 老师 | 同学 | 啊 | 呀 | 吧 | 了 | 哦 | 噢 | 嗯 | 呃 | 那 | 那么 |
        非常 | 十分 | 很 | 真 | 一下 | 可以 | 可以吗 | 能 | 能不能 | 吗 | 呢 | 您 | 你 | 我 |
        我们 | 慢一点 | 慢点 | 今天 | 现在 | 麻烦 | 的 | 啦 | 嘛 | 都 | 太""",
}
# What a listener says to show that they listen.
_BACKCHANNELS: Final[Mapping[Language, str]] = {
    "en": """mm | mmm | mhm | mm hm | mm hmm | hm | hmm | uh huh | uhhuh | uh | um | er | ah | aha |
        oh | ooh | wow | ok | okay | o k | yes | yeah | yep | yup | ya | right | alright |
        all right | sure | fine | good | great | nice | cool | perfect | exactly | indeed | true |
        really | i see | i know | got it | i got it | i understand | understood | of course |
        makes sense | that makes sense | interesting | and | so | well | the""",
    "zh": """嗯 | 嗯嗯 | 唔 | 呃 | 啊 | 哦 | 噢 | 喔 | 哎 | 哈 | 嗯哼 | 对 | 对的 | 对对 | 对对对 |
        是 | 是的 | 是啊 | 是吗 | 没错 | 好 | 好的 | 好吧 | 行 | 可以 | 明白 | 明白了 | 懂了 |
        知道 | 知道了 | 了解 | 原来如此 | 这样 | 这样啊 | 真的 | 真的吗 | 不错 | 很好 | 当然 |
        ok | okay | yes | yeah""",
}
_STOPS: Final[Mapping[Language, str]] = {
    "en": """stop | stop it | stop please | please stop | stop talking | stop now | stop there |
        stop stop | wait | wait wait | wait please | please wait | wait a moment | wait a minute |
        wait a second | hold on | hold on a second | hold on please | hang on | one moment |
        one moment please | just a moment | just a minute | one second | pause | quiet |
        be quiet | enough | that is enough | excuse me""",
    "zh": """停 | 停停 | 停下 | 停下来 | 停一下 | 停止 | 先停 | 先停一下 | 暂停 | 等 | 等等 |
        等一下 | 等一等 | 等下 | 先等一下 | 请等一下 | 稍等 | 稍等一下 | 慢着 | 别说了 | 不要说了 |
        别讲了 | 够了 | 安静 | 打断一下 | stop | wait""",
}
_MAX_LENGTH: Final = 80
_TOKEN = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
_QUIET = re.compile(r"['’`]")
_PUNCTUATION = re.compile(r"[^\w\s]|_")


def spoken_words(text: str) -> tuple[str, ...]:
    """Lower-case words, and Chinese characters one by one; punctuation is not heard."""
    plain = _PUNCTUATION.sub(" ", _QUIET.sub("", text.lower()))
    return tuple(_TOKEN.findall(plain))


def _phrases(text: str) -> frozenset[tuple[str, ...]]:
    return frozenset(spoken_words(phrase) for phrase in text.split("|"))


def _table(language: Language) -> dict[tuple[str, ...], Kind | None]:
    table: dict[tuple[str, ...], Kind | None] = {
        spoken_words(phrase): None for phrase in _FILLERS[language].split("|")
    }
    for kind, phrases in _PHRASES[language].items():
        table.update((spoken_words(phrase), kind) for phrase in phrases.split("|"))
    return table


_HEARING: Final = {
    language: dict.fromkeys(_phrases(text)) for language, text in _BACKCHANNELS.items()
}
_STOPPING: Final = {language: _phrases(text) for language, text in _STOPS.items()}
_TABLES: Final = {language: _table(language) for language in _PHRASES}
_LONGEST: Final = max(len(phrase) for table in _TABLES.values() for phrase in table)
_WEIGHT: Final[tuple[Kind, ...]] = tuple(_PHRASES["en"])


def kind_of(question: str, language: Language) -> Kind | None:
    """What a question is if it is small talk from its first word to its last, otherwise None.

    `language` decides where the question has no letters of either.
    """
    if len(question) > _MAX_LENGTH:
        return None
    tokens = spoken_words(question)
    found = _split(tokens, _TABLES[detect(question, language)])
    return min(found, key=_WEIGHT.index) if found else None


def is_small_talk(question: str, language: Language) -> bool:
    """Whether a question needs no course material: nothing is to be looked up for it."""
    return kind_of(question, language) is not None


def is_backchannel(text: str, language: Language) -> bool:
    """Whether somebody only shows that they listen ("mm-hm", "ok, I see", 嗯): no interruption."""
    tokens = spoken_words(text)
    return bool(tokens) and _split(tokens, _HEARING[detect(text, language)]) is not None


def is_stop(text: str, language: Language) -> bool:
    """Whether somebody asks for silence and no more ("stop", "wait a moment", 等一下)."""
    return spoken_words(text) in _STOPPING[detect(text, language)]


def _split(
    tokens: tuple[str, ...], table: Mapping[tuple[str, ...], Kind | None]
) -> list[Kind] | None:
    """The kinds of the phrases that a text is made of; None if anything else is in it."""
    # Where a text can be cut off into phrases, and the kinds up to there. Every way to cut is
    # followed, since "what" and "what can you do" begin alike.
    reached: dict[int, list[Kind]] = {0: []}
    for start in range(len(tokens)):
        if start not in reached:
            continue
        for end, kind in _phrases_at(tokens, start, table):
            kinds = reached[start] + ([kind] if kind else [])
            known = reached.get(end)
            # Fewer phrases mean longer ones, which say more.
            if known is None or not known or (kinds and len(kinds) < len(known)):
                reached[end] = kinds
    return reached.get(len(tokens))


def _phrases_at(
    tokens: tuple[str, ...], start: int, table: Mapping[tuple[str, ...], Kind | None]
) -> Iterator[tuple[int, Kind | None]]:
    for end in range(start + 1, min(len(tokens), start + _LONGEST) + 1):
        phrase = tokens[start:end]
        if phrase in table:
            yield end, table[phrase]
