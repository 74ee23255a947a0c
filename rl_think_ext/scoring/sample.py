"""Thoughts of a model for given prompts, in batches, where no other row decides what one of them becomes.

Each thought is drawn by inverting the distribution with uniform numbers of its own, made from the seed and its key:
the batch that it travels in, the order of the rows and a run that was interrupted change nothing but rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rl_think_ext.scoring.likelihood import eval_mode, forward_arguments
from rl_think_ext.template import CLOSE_TAG, TagIds

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Request(NamedTuple):
    """Ids of a prompt, and a key that names this one thought; equal keys under a seed give equal random numbers."""

    prompt: tuple[int, ...]
    key: str


@dataclass(frozen=True)
class ThoughtSampler:
    """Samples at a temperature from the whole distribution, up to the closing tag or an end of text.

    Args:
        model: A causal language model with `generate`; nothing of its own generation config is used but the ends.
        tokenizer: Its tokenizer.
        tags: The ids of the tags; a closing tag of several tokens is recognised as text.
        max_tokens: Tokens of one batch, room for the thoughts included; a longer row goes alone.
        max_thought_tokens: Where a thought is cut off.
        temperature: Above 0.
        seed: With a request's key it decides the thought.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tags: TagIds
    max_tokens: int = 16384
    max_thought_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0

    @property
    def ends(self) -> list[int]:
        """The ids at which a thought ends: ends of text, and the closing tag where it is one token."""
        return ends_of(self.model, self.tokenizer, self.tags)

    def __call__(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """One completion for each request, in ids, with the id that ended it; the order is kept."""
        thoughts: list[tuple[int, ...]] = [()] * len(requests)
        with torch.no_grad(), eval_mode(self.model), self._generation_config():
            for rows in self._batches(requests):
                for i, ids in zip(rows, self._generate([requests[i] for i in rows]), strict=True):
                    thoughts[i] = ids
        return thoughts

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Row numbers of each batch, longest prompts first, so that the largest allocation comes first."""
        uniform = "position_ids" not in forward_arguments(self.model)
        batch: list[int] = []
        for i in sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt), i)):
            longest = len(requests[batch[0]].prompt) if batch else 0
            full = batch and (len(batch) + 1) * (longest + self.max_thought_tokens) > self.max_tokens
            # Without position ids, left padding would shift absolute positions: only equal lengths go together.
            if full or (batch and uniform and len(requests[i].prompt) != longest):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _generate(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        width, pad = max(len(r.prompt) for r in requests), self._pad
        ids = torch.tensor([(pad,) * (width - len(r.prompt)) + r.prompt for r in requests])
        seen = torch.tensor([(0,) * (width - len(r.prompt)) + (1,) * len(r.prompt) for r in requests])
        numbers = torch.stack([uniforms(self.seed, r.key, self.max_thought_tokens) for r in requests])
        device = self.model.device
        extra = {} if self.tags.single else {"stop_strings": [CLOSE_TAG], "tokenizer": self.tokenizer}
        generate: Any = self.model.generate
        out = generate(
            input_ids=ids.to(device),
            attention_mask=seen.to(device),
            logits_processor=[Inversion(numbers.to(device), width, self.temperature)],
            **extra,
        )
        return [self._cut(row) for row in out[:, width:].tolist()]

    @property
    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.ends[0] if self.ends else 0)

    def _cut(self, ids: list[int]) -> tuple[int, ...]:
        """Without what stands behind the end: padding, or what other rows of the batch still wrote."""
        for i, token in enumerate(ids):
            if token in self.ends:
                return tuple(ids[: i + 1])
        if not self.tags.single:
            # The row stopped at the text of the tag and was padded from there on.
            while ids and ids[-1] == self._pad:
                ids = ids[:-1]
        return tuple(ids)

    @contextmanager
    def _generation_config(self) -> Iterator[None]:
        """A plain config for the time of a call: penalties or a top-k of the model's own would change the question."""
        from transformers import GenerationConfig

        own = self.model.generation_config
        plain = GenerationConfig(
            do_sample=False,  # the processor has chosen already
            max_new_tokens=self.max_thought_tokens,
            eos_token_id=self.ends or None,
            pad_token_id=self._pad,
        )
        self.model.generation_config = plain
        try:
            yield
        finally:
            self.model.generation_config = own


class Inversion:
    """A logits processor that draws the token: the first whose cumulative probability exceeds the row's number.

    Args:
        numbers: [rows, steps] uniform in [0, 1), float64.
        start: Length of the padded prompts, which tells the step.
        temperature: The logits are divided by it.
    """

    def __init__(self, numbers: Tensor, start: int, temperature: float) -> None:
        self.numbers, self.start, self.temperature = numbers, start, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[rows, V] logits to the same shape with everything but the drawn token at minus infinity."""
        step = input_ids.shape[1] - self.start
        # float64: in float32 the sum over a large vocabulary is off by more than many a token's probability.
        cumulative = (scores.double() / self.temperature).softmax(-1).cumsum(-1)
        aim = self.numbers[:, step : step + 1] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, aim, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


def uniforms(seed: int, key: str, num: int) -> Tensor:
    """`num` numbers in [0, 1) for one thought, float64; a longer list begins with the shorter one."""
    import numpy as np

    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big"))).random(num))


def ends_of(model: Any, tokenizer: PreTrainedTokenizerBase, tags: TagIds) -> list[int]:
    """The ids at which the trainer ends a completion: those of the model's generation config and its tokenizer's."""
    given = getattr(model.generation_config, "eos_token_id", None)
    found = [given] if isinstance(given, int) else list(given or ())
    closing = tags.close if tags.single else ()
    return sorted({i for i in (*found, tokenizer.eos_token_id, *closing) if i is not None})


def max_positions(model: Any) -> int | None:
    """Positions that the model has by its config, or None where it does not say."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    value = getattr(config, "max_position_embeddings", None)
    return int(value) if value else None
