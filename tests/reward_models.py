"""Tiny reward models of the usual families for tests: tokenizers with their templates, and models from config."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.records import Score
from rl_think_ext.tiny import TEXT_TOKENIZER

Family = Literal["llama", "qwen", "gemma", "mistral", "qwen3"]
FAMILIES: tuple[Family, ...] = ("llama", "qwen", "gemma", "mistral", "qwen3")
Chat = list[dict[str, str]]

LLAMA = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
# A system message is folded into the last question, as in Mistral's templates.
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{{ bos_token }}{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.index0 >= turns | length - 2 else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Takes thoughts out of the assistant's turns, and writes an empty one before the last.
QWEN3 = (
    "{% for message in messages %}{% set content = message['content'] %}{% if message['role'] == 'assistant' %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}{% set content = '<think>\n\n</think>\n\n' + content %}{% endif %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
)
TEMPLATES = {"llama": LLAMA, "qwen": QWEN, "gemma": GEMMA, "mistral": MISTRAL, "qwen3": QWEN3}
SPECIAL = {
    "llama": ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    "qwen": [None, "<|im_end|>", "<|im_start|>"],
    "gemma": ["<bos>", "<end_of_turn>", "<start_of_turn>"],
    "mistral": ["<s>", "</s>", "[INST]", "[/INST]"],
    "qwen3": [None, "<|im_end|>", "<|im_start|>"],
}


def chat(*contents: str, system: str | None = None) -> Chat:
    """A chat of a user and an assistant in turn."""
    roles = ["user" if i % 2 == 0 else "assistant" for i in range(len(contents))]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def reward_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a family's control tokens and chat template; where there is a BOS it adds one."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TEXT_TOKENIZER)
    bos, eos, *others = SPECIAL[family]
    tokenizer.add_special_tokens({"eos_token": eos, "additional_special_tokens": others})
    if bos is not None:
        tokenizer.add_special_tokens({"bos_token": bos})
        number = tokenizer.convert_tokens_to_ids(bos)
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)]
        )
        assert tokenizer("a")["input_ids"][0] == number
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer


def reward_network(vocab_size: int, family: str = "qwen", seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A sequence-classification model of some thousand weights whose scores lie far apart; in eval mode."""
    torch.manual_seed(seed)
    values = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.4,
        "num_labels": 1,
        "pad_token_id": 0,
        **changes,
    }
    config = LlamaConfig(**values) if family == "llama" else Qwen3Config(**values)
    return AutoModelForSequenceClassification.from_config(config).eval()


def save_reward_model(path: Path, family: Family = "llama", **changes: Any) -> Path:
    """A folder with model and tokenizer."""
    tokenizer = reward_tokenizer(family)
    values = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, **changes}
    reward_network(len(tokenizer), family, **values).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def conversations(num: int = 8) -> list[Chat]:
    """Chats of random words, all different."""
    generator = random.Random(3)
    words = "the cat sat on a mat and thought about some things for long".split()
    return [
        chat(*(" ".join(generator.choices(words, k=generator.randint(1, 30))) for _ in range(2))) for _ in range(num)
    ]


def config(folder: Path, **changes: Any) -> RLMTConfig:
    """Settings with this reward model."""
    return RLMTConfig(reward_model=str(folder), **changes)


def stock_score(folder: Path, messages: Chat, family: Family = "llama") -> float:
    """As in the model cards: transformers alone, one conversation."""
    tokenizer = reward_tokenizer(family)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, return_tensors="pt")
    with torch.no_grad():
        return float(model(ids).logits[0, 0])


def values(scores: list[Score]) -> list[float | None]:
    """The numbers, None where there is none."""
    return [score.value for score in scores]
