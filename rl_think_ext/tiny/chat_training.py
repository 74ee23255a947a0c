"""Random weights and training loops of the chat task's two models.

The policy reads `completion`s. The reward model first reads right answers as a language model, then learns from pairs
of answers by the loss of Bradley and Terry; it never sees a thought.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rl_think_ext.tiny.chat_examples import example, pairs
from rl_think_ext.tiny.chat_measure import Loaded
from rl_think_ext.tiny.chat_tokenizers import policy_tokenizer, reward_tokenizer
from rl_think_ext.tiny.chats import Request, messages, requests

# How the policy's examples are written; with both formats in it one start serves both twins.
FORMATS = {"think": 0.45, "none": 0.45, "unclosed": 0.04, "unopened": 0.03, "doubled": 0.03}
_IGNORE = -100
_BATCH = 32


def build_policy(tokenizer: PreTrainedTokenizerBase, seed: int, *, intermediate_size: int = 192) -> Qwen3ForCausalLM:
    """A Qwen3 of 0.17 M parameters with random weights."""
    torch.manual_seed(seed)
    shape = {**_shape(tokenizer), "intermediate_size": intermediate_size}
    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, head_dim=16, bos_token_id=None, **shape)
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def build_reward(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForSequenceClassification:
    """A Llama with one output and random weights."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(
        LlamaConfig(vocab_size=len(tokenizer), num_labels=1, bos_token_id=tokenizer.bos_token_id, **_shape(tokenizer))
    )


def _shape(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    return {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        # The usual 0.02 stays on a plateau at this width.
        "initializer_range": 0.08,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def completion(rng: random.Random, request: Request) -> str:
    """What a mediocre chat model says: with a thought or without, now and then malformed."""
    thought, answer = example(rng, request)
    kind = rng.choices(list(FORMATS), list(FORMATS.values()))[0]
    if kind == "none":
        return answer
    opener = "" if kind == "unopened" else "<think>\n"
    closer = " " if kind == "unclosed" else "\n</think>\n\n"
    return f"{opener}{thought}{closer}" + (f"{answer}{closer}" if kind == "doubled" else answer)


def policy_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, said: Sequence[tuple[Request, str]]
) -> Tensor:
    """Cross-entropy of what is said, in nats a token; the prompt is read without a loss."""
    chats = [messages(request) for request, _ in said]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return said_loss(model, tokenizer, prompts, [text for _, text in said])


def said_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], said: Sequence[str]
) -> Tensor:
    """Cross-entropy of what is said behind prompts that the template has written, in nats a token."""
    texts = [f"{prompt}{text}{tokenizer.eos_token}" for prompt, text in zip(prompts, said, strict=True)]
    # The templates write whatever begins a text.
    batch = tokenizer(texts, padding=True, return_tensors="pt", padding_side="right", add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, _IGNORE)
    for row, ids in zip(labels, tokenizer(list(prompts), add_special_tokens=False)["input_ids"], strict=True):
        row[: len(ids)] = _IGNORE
    return model(**batch, labels=labels).loss


def reward_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, judged: Sequence[tuple[Request, str, str]]
) -> Tensor:
    """Bradley-Terry: -log sigmoid(r(chosen) - r(rejected)), and a little of (r + r')^2 to keep the scores about 0."""
    said = [(request, better) for request, better, _ in judged] + [(request, worse) for request, _, worse in judged]
    chosen, rejected = _scores(model, tokenizer, said).chunk(2)
    return -logsigmoid(chosen - rejected).mean() + 0.0025 * (chosen + rejected).square().mean()


def _scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, said: Sequence[tuple[Request, str]]) -> Tensor:
    """What the reward model gives each answer [N] in one batch, with gradients; one BOS, as its template writes it."""
    chats = [[*messages(request), {"role": "assistant", "content": answer}] for request, answer in said]
    batch = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
    return model(**batch).logits[:, 0].float()


def train(
    model: PreTrainedModel, loss_of: Callable[[int], Tensor], steps: int, learning_rate: float, what: str
) -> float:
    """AdamW on `loss_of(step)`; returns the mean loss of the last 50 steps, in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    losses: list[float] = []
    for step in (bar := tqdm(range(steps), desc=what, unit="step", mininterval=5)):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0:
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])


def make_policy(seed: int, steps: int) -> tuple[Loaded, float]:
    """A policy that has read `completion`s, 32 a step, and its final loss."""
    tokenizer = policy_tokenizer()
    model, rng = build_policy(tokenizer, seed), random.Random(f"policy:{seed}")
    said = [(request, completion(rng, request)) for request in requests("train", seed, _BATCH * steps)]
    return (model, tokenizer), train(
        model, lambda i: policy_loss(model, tokenizer, said[_BATCH * i : _BATCH * (i + 1)]), steps, 2e-3, "policy"
    )


def make_reward(seed: int, read_steps: int, judge_steps: int) -> tuple[Loaded, float]:
    """A reward model that has first read right answers as a language model, then judged pairs, 32 of each a step.

    From random weights the pairs alone do not teach it in the same time which letters are missing.
    """
    tokenizer = reward_tokenizer()
    model = build_reward(tokenizer, seed)
    reader = LlamaForCausalLM(model.config)
    reader.model = model.model
    asked = requests("train", seed + 1, _BATCH * read_steps)
    said = [(request, request.answer) for request in asked]
    train(
        reader,
        lambda i: policy_loss(reader, tokenizer, said[_BATCH * i : _BATCH * (i + 1)]),
        read_steps,
        2e-3,
        "reading",
    )
    judged = list(pairs("train", seed, _BATCH * judge_steps))
    return (model, tokenizer), train(
        model,
        lambda i: reward_loss(model, tokenizer, judged[_BATCH * i : _BATCH * (i + 1)]),
        judge_steps,
        1e-3,
        "judging",
    )


def _rate(step: int, steps: int) -> float:
    """Warm-up over 100 steps, constant, then down to 5 % over the last 40 %."""
    left = 1 - step / steps
    return min(1.0, (step + 1) / 100) * (0.05 + 0.95 * min(1.0, left / 0.4))
