"""Whole outputs of a model for given prompts, sampled in this process up to a stop text or the end of the text.

As in sample.py, random numbers belong to an output and not to its batch: the same key gives the same output whatever
it is sampled with, so that an interrupted build goes on as if nothing had happened (but for rounding).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rl_think_ext.scoring.likelihood import eval_mode, forward_arguments
from rl_think_ext.scoring.sample import Inversion, Request, ends_of, uniforms
from rl_think_ext.template import TagIds

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Completion(NamedTuple):
    """An output as text, whether it ended by itself, and its length in ids."""

    text: str
    finished: bool
    num_tokens: int


@dataclass
class StopText:
    """Says which rows have written a text; `start` is where the outputs begin, None for one before the first call.

    transformers' own way (`stop_strings`) looks through the whole vocabulary first, and breaks where tokens are words.
    """

    tokenizer: PreTrainedTokenizerBase
    stop: str
    start: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """[rows, length] ids to [rows] bool."""
        if self.start is None:
            self.start = input_ids.shape[1] - 1
        # A token is a character or more: so many hold all of the text that ends in the last one.
        tail = input_ids[:, max(self.start, input_ids.shape[1] - len(self.stop)) :]
        found = [self.stop in str(self.tokenizer.decode(row)) for row in tail.tolist()]
        return torch.tensor(found, device=input_ids.device)


@dataclass(frozen=True)
class Completer:
    """Samples at a temperature from the whole distribution; nothing of the model's generation config but the ends.

    Args:
        model: A causal language model with `generate`.
        tokenizer: Its tokenizer.
        max_new_tokens: Where an output is cut off.
        stop: A text that ends an output as well; it stays in the text.
        temperature: Above 0.
        max_tokens: Tokens of one batch, room for the outputs included; a longer row goes alone.
        seed: With a request's key it decides the output.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int = 4096
    stop: str | None = None
    temperature: float = 0.7
    max_tokens: int = 16384
    seed: int = 0

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """The number of each request with its output, batch by batch, longest prompts first."""
        for rows in self._batches(requests):
            with torch.no_grad(), eval_mode(self.model):
                found = self._generate([requests[i] for i in rows])
            yield from zip(rows, found, strict=True)

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        uniform = "position_ids" not in forward_arguments(self.model)
        batch: list[int] = []
        for i in sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt), i)):
            longest = len(requests[batch[0]].prompt) if batch else 0
            full = (len(batch) + 1) * (longest + self.max_new_tokens) > self.max_tokens
            # Without position ids, left padding would shift absolute positions: only equal lengths go together.
            if batch and (full or (uniform and len(requests[i].prompt) != longest)):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _generate(self, requests: Sequence[Request]) -> list[Completion]:
        from transformers import GenerationConfig

        ends = ends_of(self.model, self.tokenizer, TagIds((), ()))
        pad = self.tokenizer.pad_token_id
        pad = int(pad if pad is not None else ends[0] if ends else 0)
        width, device = max(len(r.prompt) for r in requests), self.model.device
        ids = torch.tensor([(pad,) * (width - len(r.prompt)) + r.prompt for r in requests], device=device)
        seen = torch.tensor([(0,) * (width - len(r.prompt)) + (1,) * len(r.prompt) for r in requests], device=device)
        numbers = torch.stack([uniforms(self.seed, r.key, self.max_new_tokens) for r in requests]).to(device)
        config = GenerationConfig(
            do_sample=False,  # the processor has chosen already
            max_new_tokens=self.max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=pad,
        )
        extra = {"stopping_criteria": [StopText(self.tokenizer, self.stop, width)]} if self.stop else {}
        processors = [Inversion(numbers, width, self.temperature)]
        own, self.model.generation_config = self.model.generation_config, config
        try:
            generate: Any = self.model.generate
            out = generate(input_ids=ids, attention_mask=seen, logits_processor=processors, **extra)
        finally:
            self.model.generation_config = own
        return [self._completion(row, set(ends)) for row in out[:, width:].tolist()]

    def _completion(self, ids: list[int], ends: set[int]) -> Completion:
        """The text up to the first end; what stands behind it is padding, or what other rows still wrote."""
        end = next((i for i, token in enumerate(ids) if token in ends), None)
        text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=False))
        if self.stop and self.stop in text:
            text = text[: text.index(self.stop) + len(self.stop)]
            return Completion(text, True, len(self.tokenizer(text, add_special_tokens=False)["input_ids"]))
        return Completion(text, end is not None, len(ids) if end is None else end + 1)
