"""Sampling with the parameters of vLLM's SamplingParams that verl and our agent loops use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Sampling:
    max_tokens: int
    stop_token_ids: frozenset[int]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False  # vLLM: of the text; the token ids keep it anyway
    logprobs: bool = False
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, params: dict[str, Any], response_length: int, eos: int | list[int] | None) -> Sampling:
        """Raises TypeError on a parameter that vLLM would not know, or that is not taken here."""
        values = dict(params)
        length = values.pop("max_tokens", None) or values.pop("max_new_tokens", None) or response_length
        ends = [] if eos is None or values.pop("ignore_eos", False) else [eos] if isinstance(eos, int) else eos
        ids = frozenset([*ends, *(values.pop("stop_token_ids", None) or [])])
        stop = values.pop("stop", None) or ()
        texts = (stop,) if isinstance(stop, str) else tuple(stop)
        if values.get("repetition_penalty", 1.0) != 1.0:
            raise TypeError("repetition_penalty is not taken here")
        return cls(max_tokens=int(length), stop_token_ids=ids, stop=texts, **values)


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, prompt: list[int], sampling: Sampling, draws: tuple[object, ...]
) -> tuple[list[int], list[float]]:
    """Token ids with the stop token or stop text in, and their log-probs under what they were drawn from."""
    random = np.random.default_rng(list(hashlib.sha256(repr(draws).encode()).digest()))
    tokens: list[int] = []
    logprobs: list[float] = []
    past, inputs = None, torch.tensor([prompt])
    for _ in range(sampling.max_tokens):
        output = model(inputs, past_key_values=past, use_cache=True)
        past = output.past_key_values
        token, logprob = draw(output.logits[0, -1].double(), sampling, random.random())
        tokens.append(token)
        logprobs.append(logprob)
        if token in sampling.stop_token_ids or stops(tokenizer, tokens, sampling.stop):
            break
        inputs = torch.tensor([[token]])
    return tokens, logprobs


def draw(logits_V: torch.Tensor, sampling: Sampling, uniform: float) -> tuple[int, float]:
    if not sampling.temperature:
        token = int(logits_V.argmax())
        return token, float(logits_V.log_softmax(-1)[token])
    logits = logits_V / sampling.temperature
    if sampling.top_k > 0:
        smallest = logits.topk(min(sampling.top_k, logits.numel())).values[-1]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p < 1.0:
        best, order = logits.softmax(-1).sort(descending=True, stable=True)
        logits = logits.masked_fill(
            torch.zeros_like(logits).bool().index_fill(0, order[outside(best, sampling.top_p)], True), -torch.inf
        )
    cumulative = logits.softmax(-1).cumsum(-1)
    token = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return token, float(logits.log_softmax(-1)[token])


def outside(best_V: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which of the sorted probabilities lie behind the smallest head that holds `top_p`."""
    return best_V.cumsum(-1) - best_V > top_p


def stops(tokenizer: Any, tokens: list[int], texts: tuple[str, ...]) -> bool:
    """A stop text has just been completed: looked for in the text, whatever the tokens are."""
    if not texts:
        return False
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    return any(stop in text for stop in texts)
