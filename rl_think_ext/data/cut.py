"""One document into contexts and targets: on characters, or on the ids of a tokenizer.

A cutter keeps count of what it leaves out, by reason; positions.py says where it may cut.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rl_think_ext.data.positions import (
    Offsets,
    count_overlong,
    sample_positions,
    splits_character,
    splits_cluster,
    token_ends,
)
from rl_think_ext.data.sources import Document
from rl_think_ext.errors import UserError
from rl_think_ext.records import Example
from rl_think_ext.segment import sentence_spans
from rl_think_ext.template import find

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rl_think_ext.data.rlp import RLPDataConfig

TARGET_CAP = 1000  # characters of the next sentence that become a target at most


class TextCutter:
    """Cuts a document on characters, and counts what it leaves out."""

    def __init__(self, config: RLPDataConfig) -> None:
        self.config = config
        self.documents: Counter[str] = Counter()
        self.positions: Counter[str] = Counter()
        self.num_cut = 0

    def examples(self, document: Document) -> Iterator[Example]:
        """The contexts and targets of one document, in the order of the text."""
        text = document.text
        ends = [end for _, end in sentence_spans(text)]
        limit = self.config.max_context_chars
        for cut in self._sample(document, len(text), ends, self.config.min_context_chars, limit):
            piece = text[cut : self._target_end(cut, ends)]
            if splits_cluster(text, cut):
                self.positions["inside a character"] += 1
            elif not piece.strip():
                self.positions["empty target"] += 1
            else:
                self.num_cut += cut > limit
                yield Example(cut, text[max(0, cut - limit) : cut], piece)

    def _target_end(self, cut: int, ends: Sequence[int]) -> int:
        if self.config.max_target_chars is not None:
            return cut + self.config.max_target_chars
        index = bisect_right(ends, cut)
        return min(ends[index], cut + TARGET_CAP) if index < len(ends) else cut

    def _sample(
        self,
        document: Document,
        length: int,
        ends: Sequence[int],
        least: int,
        limit: int,
        entropies: Sequence[float] | None = None,
    ) -> list[int]:
        config = self.config
        highest = limit if config.overlong == "skip" else None
        if highest is not None:
            number = count_overlong(config.sampler, length, highest, stride=config.stride, ends=ends)
            self.positions["context too long"] += number
        return sample_positions(
            config.sampler,
            length,
            seed=config.seed,
            document_id=document.id,
            num_positions=config.num_positions,
            min_context=least,
            max_context=highest,
            stride=config.stride,
            ends=ends,
            entropies=entropies,
            min_entropy=config.min_entropy,
        )


class TokenCutter(TextCutter):
    """Cuts a document on the ids of a tokenizer."""

    def __init__(self, config: RLPDataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(config)
        if not tokenizer.is_fast:
            raise UserError(f"the tokenizer {config.tokenizer} gives no offsets; a fast one (tokenizer.json) is needed")
        self.tokenizer = tokenizer
        self.prefix = _prefix(tokenizer)
        self.limit = config.max_context_tokens - len(self.prefix)
        self.special = set(tokenizer.all_special_ids)
        self.entropies: Callable[[Sequence[int]], list[float]] | None = None
        if config.model:
            from rl_think_ext.scoring.load import load_model

            model = load_model(config.model)
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                raise UserError(f"the tokenizer {config.tokenizer} has more words than the model {config.model}")
            self.entropies = entropy_of(model, self.prefix, config.max_context_tokens)

    def examples(self, document: Document) -> Iterator[Example]:
        """The contexts and targets of one document, in the order of the text."""
        encoded = self.tokenizer(
            document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )  # verbose: a document may be longer than the model's window, it is cut below
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if found := self.special.intersection(ids):
            unknown = self.tokenizer.unk_token_id in found
            self.documents["unknown token" if unknown else "special token in the text"] += 1
            return
        ends = self._ends(document.text, offsets)
        entropies = self.entropies(ids) if self.entropies else None
        least = self.config.min_context_tokens
        for cut in self._sample(document, len(ids), ends, least, self.limit, entropies):
            if splits_character(cut, offsets):
                self.positions["inside a character"] += 1
            elif not document.text[offsets[cut - 1][1] :].strip():
                self.positions["empty target"] += 1
            else:
                yield self._example(document.text, ids, offsets, cut)

    def _ends(self, text: str, offsets: Offsets) -> list[int]:
        if self.config.sampler != "sentence":
            return []
        ends, num_inside = token_ends([end for _, end in sentence_spans(text)], offsets, text)
        self.positions["inside a token"] += num_inside
        return ends

    def _example(self, text: str, ids: list[int], offsets: Offsets, cut: int) -> Example:
        start = max(0, cut - self.limit)
        self.num_cut += start > 0
        while splits_character(start, offsets):
            start += 1
        stop = min(cut + self.config.num_target_tokens, len(ids))
        at = offsets[cut - 1][1]
        return Example(
            at,
            text[offsets[start][0] if start else 0 : at],
            text[at : offsets[stop - 1][1]],
            (*self.prefix, *ids[start:cut]),
            tuple(ids[cut:stop]),
        )


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text (BOS); what it puts behind one has no place before a target."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    return list(full[: max(find(full, plain), 0)])


def entropy_of(model: PreTrainedModel, prefix: Sequence[int], window: int) -> Callable[[Sequence[int]], list[float]]:
    """A function from ids to the entropy (nats) of the model's next token before each of them.

    Long documents are read in windows that overlap by half, so that every position but the first ones has at least
    half a window of context. The first id is NaN where the tokenizer has no BOS.
    """
    import torch

    most = getattr(model.config, "max_position_embeddings", None) or window
    size = max(2, min(window, most) - len(prefix))

    @torch.no_grad()
    def entropies(ids: Sequence[int]) -> list[float]:
        found = [float("nan")] * len(ids)
        for begin in range(0, max(len(ids) - size // 2, 1), max(size // 2, 1)):
            part = ids[begin : begin + size]
            inputs = torch.tensor([[*prefix, *part]], device=model.device)
            logits = model(input_ids=inputs).logits[0]
            skip = size // 2 if begin else 0
            for index in range(max(skip, 1 - len(prefix)), len(part)):
                # Row by row: float32 log-probs of a whole window over 150,000 words are gigabytes.
                logprob = logits[len(prefix) + index - 1].float().log_softmax(-1)
                found[begin + index] = float(-(logprob.exp() * logprob).sum())
        return found

    return entropies
