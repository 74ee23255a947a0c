"""The pre-training of RLPT's miniature policy; weights, loss and loop are those of the chat task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rl_think_ext.tiny.chat_measure import Loaded as Loaded
from rl_think_ext.tiny.chat_measure import load_policy as load_policy
from rl_think_ext.tiny.chat_training import build_policy, said_loss, train
from rl_think_ext.tiny.segment_examples import Chat, rows
from rl_think_ext.tiny.segment_tokenizer import build_tokenizer

_BATCH = 32


def frame(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A prompt in the chat template, up to where the assistant begins."""
    chat = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))


def chat_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> Tensor:
    """Cross-entropy of what is said, in nats a token; prompts are read without a loss."""
    prompts = ["" if chat.prompt is None else frame(tokenizer, chat.prompt) for chat in chats]
    return said_loss(model, tokenizer, prompts, [chat.said for chat in chats])


def make_policy(seed: int, steps: int) -> tuple[Loaded, float]:
    """A policy that has read `rows`, 32 a step, and its final loss."""
    tokenizer = build_tokenizer()
    model, texts = build_policy(tokenizer, seed, intermediate_size=160), rows(seed)
    return (model, tokenizer), train(
        model, lambda _: chat_loss(model, tokenizer, list(islice(texts, _BATCH))), steps, 2e-3, "pre-training"
    )
