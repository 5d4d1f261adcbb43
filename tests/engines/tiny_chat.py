"""Tiny chat models in the real file formats, built in seconds: they speak nonsense, on purpose."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tests.built import built_once

COURSES: Final = Path(__file__).parents[2] / "gpuserver" / "courses"
SAYS: Final = {"ada": "Ada ", "bo": "Bo "}
"""What the model says with each adapter, over and over, whatever it is asked."""
THOUGHT: Final = ("One", "Two", "Three")
"""What the thinking model thinks each time, between its markers; then it ticks until stopped."""
TICKS: Final = ("Tick", "Tock")

_CONTEXT: Final = 4096
_HIDDEN: Final = 256
_HEADS: Final = 4
_SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_WORDS: Final = ("<think>", "</think>", *SAYS.values(), *THOUGHT, *TICKS)
_TEMPLATE: Final = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_model() -> Path:
    """The folder of a model of random weights: its answers are random words."""
    return cached("chat", _build_chat)


def adapter(name: str) -> Path:
    """The folder of a LoRA adapter for `chat_model`; `name` is one of `SAYS`."""
    base = chat_model()
    return cached(f"adapter-{name}", lambda folder: _build_adapter(folder, base, SAYS[name]))


def thinking_model() -> Path:
    """The folder of a model that thinks `THOUGHT` and then says `TICKS` in turn, for ever."""
    return cached("thinking", _build_thinking)


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """A folder that is built once for this file and these libraries."""
    return built_once(name, build, [Path(__file__)], ["torch", "transformers"])


def _build_chat(folder: Path) -> None:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(_config(tokenizer_of(folder)))
    last = model.model.layers[-1].self_attn
    with torch.no_grad():
        model.model.norm.weight.fill_(4)
        # Whatever is attended to, values are off by this; nothing reads it but an adapter.
        torch.nn.init.normal_(last.v_proj.bias, std=2)
        bias = _attended(last.v_proj.bias)
        last.o_proj.weight -= torch.outer(last.o_proj.weight @ bias, bias) / bias.dot(bias)
    model.to(torch.bfloat16).save_pretrained(folder)


def _build_adapter(folder: Path, base: Path, word: str) -> None:
    """The value that is the same for every prompt, turned into the direction of one word."""
    model = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    bias = _attended(model.model.layers[-1].self_attn.v_proj.bias)
    row = model.lm_head.weight[tokenizer.convert_tokens_to_ids(word)]
    rank = 8
    a, b = torch.zeros(rank, _HIDDEN), torch.zeros(_HIDDEN, rank)
    a[0] = bias / bias.dot(bias)
    b[:, 0] = 500 * row / row.norm()
    layer = f"base_model.model.model.layers.{model.config.num_hidden_layers - 1}.self_attn.o_proj"
    weights = {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
    save_file(
        {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in weights.items()},
        folder / "adapter_model.safetensors",
    )
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["o_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")


def _build_thinking(folder: Path) -> None:
    """A model whose next word follows from its last alone: nothing else reaches the output."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(folder)
    model = Qwen2ForCausalLM(_config(tokenizer))
    chain = tokenizer.convert_tokens_to_ids(
        ["Ċ", "<think>", *THOUGHT, "</think>", *TICKS, TICKS[0]]
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(4)
        model.lm_head.weight.zero_()
        for now, following in zip(chain, chain[1:], strict=False):
            model.lm_head.weight[following] += model.model.embed_tokens.weight[now]
    model.to(torch.bfloat16).save_pretrained(folder)


def _attended(values: torch.Tensor) -> torch.Tensor:
    """The values of the key heads as the query heads hand them on."""
    heads = values.view(_HEADS // 2, -1)
    return heads.repeat_interleave(2, dim=0).flatten()


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS // 2,
        max_position_embeddings=_CONTEXT,
        initializer_range=0.05,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        use_sliding_window=False,
    )


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of the product's own courses, saved to a folder."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train(sorted(map(str, COURSES.rglob("*.md"))), trainer)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in _WORDS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_TEMPLATE,
    )
    fast.save_pretrained(folder)
    return fast


def main(words: Sequence[str]) -> None:
    """Build what is named (chat, thinking, ada, bo) and print its folder."""
    makers = {"chat": chat_model, "thinking": thinking_model}
    for word in words:
        sys.stdout.write(f"{makers[word]() if word in makers else adapter(word)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
