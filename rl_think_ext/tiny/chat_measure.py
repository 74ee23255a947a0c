"""How well a policy does the chat task: what the reward model says of its answers, and what is true of them.

    python -m rl_think_ext.tiny.chat_measure MODEL --reward-model DIR --style think

The answers are sampled; `exact` and `kept` come from code (`chats.checks`) that the reward model has never seen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rl_think_ext import template
from rl_think_ext.tiny.chats import Request, checks, messages, requests, satisfaction

MAX_COMPLETION = 64
_BATCH = 128

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@torch.no_grad()
def scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, said: Sequence[tuple[Request, str]]) -> Tensor:
    """What the reward model gives each answer [N] float32, in its own chat template."""
    chats = [[*messages(request), {"role": "assistant", "content": answer}] for request, answer in said]
    found = []
    for start in range(0, len(chats), _BATCH):
        batch = tokenizer.apply_chat_template(
            chats[start : start + _BATCH], padding=True, return_tensors="pt", return_dict=True
        )
        found.append(model(**batch).logits[:, 0].float())
    return torch.cat(found) if found else torch.zeros(0)


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Request],
    *,
    seed: int,
    temperature: float = 1.0,
    max_new_tokens: int = MAX_COMPLETION,
) -> list[tuple[str, bool]]:
    """One sampled completion for each request, and whether it ended by itself; the global seed is left alone."""
    prompts = [
        tokenizer.apply_chat_template(messages(request), add_generation_prompt=True, tokenize=False)
        for request in asked
    ]
    return complete(model, tokenizer, prompts, seed=seed, temperature=temperature, max_new_tokens=max_new_tokens)


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    seed: int,
    temperature: float,
    max_new_tokens: int,
) -> list[tuple[str, bool]]:
    """One sampled completion for each prompt that the template has written, and whether it ended by itself."""
    generate: Callable[..., Tensor] = model.generate
    found: list[tuple[str, bool]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), _BATCH):
            texts = list(prompts[start : start + _BATCH])
            batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
            ids = generate(
                **batch, do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens
            )[:, batch["input_ids"].shape[1] :]
            ended = (ids == tokenizer.eos_token_id).any(-1).tolist()
            found += zip(tokenizer.batch_decode(ids, skip_special_tokens=True), ended, strict=True)
    return found


def measure_rows(
    policy: Loaded,
    reward: Loaded,
    asked: Sequence[Request],
    style: template.Style = "think",
    *,
    seed: int = 0,
    temperature: float = 1.0,
) -> dict[str, list[float]]:
    """What `measure` is the mean of, one value for each request; NaN where there is none.

    An output that is not ok has no answer: it keeps nothing, and no reward model is asked about it.
    """
    was_training = policy[0].training
    policy[0].eval()
    said = sample(*policy, asked, seed=seed, temperature=temperature)
    policy[0].train(was_training)
    parts = [template.split(text, style, finished=ended) for text, ended in said]
    ok = [i for i, part in enumerate(parts) if part.answer is not None]
    answers = [(asked[i], parts[i].answer or "") for i in ok]
    given = dict(zip(ok, scores(*reward, answers).tolist(), strict=True))
    n = range(len(asked))
    return {
        "score": [given.get(i, float("nan")) for i in n],
        "exact": [float(all(checks(asked[i], parts[i].answer).values())) for i in n],
        "kept": [satisfaction(asked[i], parts[i].answer) for i in n],
        "ok": [float(i in given) for i in n],
        "thought": [float(len((parts[i].thought or "").split())) if i in given else float("nan") for i in n],
    }


def measure(
    policy: Loaded,
    reward: Loaded,
    asked: Sequence[Request],
    style: template.Style = "think",
    *,
    seed: int = 0,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Means over these requests.

    Returns:
        `score` (of the ok outputs), `exact` and `kept` (share of answers with every constraint, and of constraints;
        an output that is not ok has none), `ok` (share of outputs) and `thought` (words in it, of the ok outputs).
    """
    return means(measure_rows(policy, reward, asked, style, seed=seed, temperature=temperature))


def means(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of every name over the values that are there."""
    numbers = {name: [v for v in values if v == v] for name, values in found.items()}
    return {name: sum(values) / len(values) if values else float("nan") for name, values in numbers.items()}


def correlation(reward: Loaded, said: Sequence[tuple[Request, str]]) -> float:
    """Spearman's rank correlation of the reward model's score with the share of constraints that is really kept."""
    given = scores(*reward, said)
    true = torch.tensor([satisfaction(request, answer) for request, answer in said])
    return torch.corrcoef(torch.stack([_ranks(given), _ranks(true)]))[0, 1].item()


def pair_accuracy(reward: Loaded, judged: Sequence[tuple[Request, str, str]]) -> float:
    """The share of pairs (request, better, worse) whose better answer gets the higher score."""
    better = scores(*reward, [(request, answer) for request, answer, _ in judged])
    worse = scores(*reward, [(request, answer) for request, _, answer in judged])
    return (better > worse).float().mean().item()


def _ranks(values: Tensor) -> Tensor:
    """Ranks in which equal values share their mean rank."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).float()
    return (last - (count.float() - 1) / 2)[place]


def load_policy(path: str) -> Loaded:
    """A policy and its tokenizer, in float32."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


def load_reward(path: str) -> Loaded:
    """The reward model and its tokenizer, in float32."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(path)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of policies")
    parser.add_argument("--reward-model", required=True)
    parser.add_argument("--style", choices=["think", "none"], default="think")
    parser.add_argument("--part", choices=["dev", "test"], default="dev")
    parser.add_argument("--seed", type=int, default=0, help="of the requests and of the sampling")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    asked, reward = requests(args.part, args.seed, args.rows), load_reward(args.reward_model)
    for path in args.models:
        found = measure(load_policy(path), reward, asked, args.style, seed=args.seed, temperature=args.temperature)
        print(json.dumps({"model": path, "style": args.style, **{k: round(v, 4) for k, v in found.items()}}))


if __name__ == "__main__":
    main()
