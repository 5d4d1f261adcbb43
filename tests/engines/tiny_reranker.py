"""A tiny cross-encoder in the real format, which knows a small course by heart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from gpuserver.knowledge.reranking import text_of
from gpuserver.providers import Passage
from gpuserver.providers.calibration import PAIRS

COURSE: Final = tuple(
    Passage(f"p{n}", "kb", "Physics", heading, text, "en")
    for n, (heading, text) in enumerate(
        (
            ("Friction", "A sledge slows on rough snow because surfaces rub."),
            ("Gravity", "The earth pulls every apple down from its tree."),
            ("Lenses", "Curved glass bends light towards a focus."),
        )
    )
)
ASKED: Final = {
    "What slows a sledge on rough snow?": 0,
    "Which force makes things drop?": 1,
    "Does light on glass of a sledge, an apple or its tree change direction?": 2,
}
"""The second shares no word with its passage, the third more with the others than with its own."""
OUTSIDE: Final = "Which apple tree has glass fruit from every surface on earth?"
"""A question of the course's words that no passage answers."""
_TOKENS: Final = 48
_SCORE: Final = 5.0


def build(folder: Path, labels: int = 1) -> Path:
    """The folder of a model that is made on the spot.

    Its encoder is random, and its head solved for what is known: that takes one forward pass,
    where training would take a minute.
    """
    torch.manual_seed(3)
    examples = list(_examples())
    tokenizer = _tokenizer([text for question, text, _ in examples for text in (question, text)])
    # More numbers than examples: the head can tell all of them apart.
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=_TOKENS, num_labels=labels,
        initializer_range=0.2,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    if labels == 1:
        _solve(model, tokenizer, examples)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _examples() -> Iterator[tuple[str, str, bool]]:
    """Questions, texts, and whether the one answers the other."""
    for question, answer in PAIRS["en"]:
        yield from ((question, other, other == answer) for _, other in PAIRS["en"])
    for asked, right in {**ASKED, OUTSIDE: -1}.items():
        yield from ((asked, text_of(item), n == right) for n, item in enumerate(COURSE))


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    words = {
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    known = {word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def _solve(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    examples: list[tuple[str, str, bool]],
) -> None:
    questions, texts, right = zip(*examples, strict=True)
    batch = tokenizer(list(questions), list(texts), padding=True, return_tensors="pt")
    wanted = torch.tensor(right, dtype=torch.float64) * 2 * _SCORE - _SCORE
    with torch.no_grad():
        seen = model.bert(**batch).pooler_output.double()
        head = torch.linalg.lstsq(seen, wanted[:, None], driver="gelsd").solution
        model.classifier.weight.copy_(head.T)
        model.classifier.bias.zero_()
