"""How well a model does the miniature task: does its own thought raise the log-prob of the answer?

Everything is measured against a frozen no-think baseline, so that a model cannot raise its gain by breaking the
direct path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rl_think_ext.tiny.programs import ProgramRow, classify_thought

MAX_THOUGHT = 20
_BATCH = 128


class Answers(NamedTuple):
    """Log-prob of the target in nats [N] float32, and whether it was the most likely token [N] bool."""

    logprob: Tensor
    hit: Tensor


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[ProgramRow],
    thoughts: Sequence[str] | None = None,
) -> Answers:
    """The target after these thoughts (with or without their closer), or straight after the context.

    Without thoughts `<think>` is masked out and the rest renormalised: the mass that the model puts on the tag is
    not evidence against the answer, and left in it makes every gain too large.
    """
    opener = tokenizer.convert_tokens_to_ids("<think>")
    if thoughts is None:
        texts = [row["context"] for row in rows]
    else:
        texts = [f"{row['prompt']}{_closed(said)}" for row, said in zip(rows, thoughts, strict=True)]
    targets = torch.tensor([tokenizer.convert_tokens_to_ids(row["target"]) for row in rows])
    parts = []
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer(texts[start : start + _BATCH], padding=True, return_tensors="pt").to(model.device)
        logits_BV = model(**batch, logits_to_keep=1).logits[:, -1].float()
        if thoughts is None:
            logits_BV[:, opener] = -torch.inf
        parts.append(logits_BV.log_softmax(-1).cpu())
    logprobs_NV = torch.cat(parts)
    return Answers(logprobs_NV.gather(1, targets[:, None])[:, 0], logprobs_NV.argmax(-1) == targets)


@torch.no_grad()
def sample_thoughts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[ProgramRow],
    *,
    seed: int,
    temperature: float = 1.0,
    max_new_tokens: int = MAX_THOUGHT,
) -> list[str]:
    """One sampled thought for each row, with its closer where it was closed in time; the global seed is left alone."""
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("</think>")]
    thoughts: list[str] = []
    generate: Callable[..., Tensor] = model.generate
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(rows), _BATCH):
            prompts = [row["prompt"] for row in rows[start : start + _BATCH]]
            batch = tokenizer(prompts, padding=True, return_tensors="pt").to(model.device)
            ids = generate(
                **batch,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                max_new_tokens=max_new_tokens,
                eos_token_id=stops,
                pad_token_id=tokenizer.pad_token_id,
            )
            thoughts += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return thoughts


def measure_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[ProgramRow],
    *,
    baseline: Tensor | None = None,
    seed: int = 0,
    temperature: float = 1.0,
) -> dict[str, list[float]]:
    """What `measure` is the mean of, by name, one value for each row."""
    was_training = model.training
    model.eval()
    thoughts = sample_thoughts(model, tokenizer, rows, seed=seed, temperature=temperature)
    reasoned, direct = answer(model, tokenizer, rows, thoughts), answer(model, tokenizer, rows)
    model.train(was_training)
    frozen = direct.logprob if baseline is None else baseline
    kinds = [classify_thought(said, row["gold"]) for said, row in zip(thoughts, rows, strict=True)]
    return {
        "gain": (reasoned.logprob - frozen).tolist(),
        "reasoned": reasoned.logprob.tolist(),
        "baseline": frozen.tolist(),
        "direct": direct.logprob.tolist(),
        "accuracy": reasoned.hit.float().tolist(),
        "direct_accuracy": direct.hit.float().tolist(),
        "closed": [float(said.endswith("</think>")) for said in thoughts],
        **{k: [float(kind == k) for kind in kinds] for k in ("correct", "steps", "echo", "chat", "other")},
    }


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[ProgramRow],
    *,
    baseline: Tensor | None = None,
    seed: int = 0,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Gain, accuracy and kinds of thought over these rows, each a mean.

    Args:
        baseline: log-probs of the frozen base [N] from `answer`; None: the model is the base itself.

    Returns:
        `gain`, `reasoned`, `baseline`, `direct` in nats; `accuracy`, `direct_accuracy`, `closed` and one share for
        each kind of thought, between 0 and 1. `direct` is the model's own no-think log-prob: watch that it holds.
    """
    found = measure_rows(model, tokenizer, rows, baseline=baseline, seed=seed, temperature=temperature)
    return means(found)


def means(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of every name."""
    return {name: sum(values) / len(values) for name, values in found.items()}


def _closed(thought: str) -> str:
    return thought.removesuffix("</think>") + "</think>"
