"""From a row to the ids of its context, target and prompt; every complaint names the column and the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.template import OPEN_TAG, TagIds, canonical_closing, close_thought

if TYPE_CHECKING:
    from rl_think_ext.scoring.gain import Rollout

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Reader:
    """Reads rows for one tokenizer and one way of asking for a thought.

    Where a row has ids they decide; otherwise context and target are encoded apart, the context as the trainer
    encodes a prompt (with the tokenizer's own special tokens) and the target without any.
    """

    tokenizer: Any
    config: RLPConfig
    tags: TagIds

    @cached_property
    def _size(self) -> int:
        """Looked up once: len() of a tokenizer builds its whole vocabulary."""
        return len(self.tokenizer)

    @cached_property
    def _encode(self) -> Callable[[str, bool], Ids]:
        """Text to ids, remembered: every completion of a group brings the same row."""

        @lru_cache(maxsize=1024)
        def encode(text: str, special: bool) -> Ids:
            return tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])

        return encode

    def context(self, row: Mapping[str, Any], where: str) -> Ids:
        """The ids of x_<t.

        Raises:
            UserError: no usable context, or an unknown or padding id in it.
        """
        given = row.get("context_ids")
        ids = self._ids(given, "context_ids", where) if given is not None else self._text(row, "context", where, True)
        if not ids:
            raise UserError(f"{where}: the context is empty: leave such rows out (rl-think data rlp does)")
        return self._known(ids, "context", where)

    def target(self, row: Mapping[str, Any], where: str) -> Ids:
        """The ids of the targets that one reward covers; empty where the row has none.

        Raises:
            UserError: no usable target, or an unknown or padding id in it.
        """
        given = row.get("target_ids")
        ids = self._ids(given, "target_ids", where) if given is not None else self._text(row, "target", where, False)
        return self._known(ids[: self.config.num_target_tokens], "target", where)

    def prompt(self, row: Mapping[str, Any], context: Ids, where: str) -> Ids:
        """The ids that the policy reads: with ids, what asks for a thought is put around them; else the prompt's own.

        A row that was read before says them itself, as `prompt_ids`.

        Raises:
            UserError: a prompt that was built for another way of asking than the settings say.
        """
        if row.get("prompt_ids") is not None:
            return self._ids(row["prompt_ids"], "prompt_ids", where)
        text = row["prompt"]
        if text.endswith(OPEN_TAG) != (self.config.elicit == "prefill"):
            raise UserError(
                f"{where}: the prompt {'ends' if text.endswith(OPEN_TAG) else 'does not end'} with {OPEN_TAG}, the "
                f"settings say `elicit: {self.config.elicit}`: build the data with the same"
            )
        shown = row.get("context")
        if not isinstance(shown, str):
            raise UserError(f"{where}: column `context` is missing or no text; the prompt is built around it")
        before, found, behind = text.partition(shown) if shown else ("", "", "")
        if not found:
            raise UserError(f"{where}: the prompt does not hold the context: build the data anew")
        if row.get("context_ids") is None:
            return self._text(row, "prompt", where, True)
        # The tokenizer's first special token stays first.
        bos = context[:1] if context[0] == self.tokenizer.bos_token_id else ()
        return (*bos, *self._plain(before), *context[len(bos) :], *self._plain(behind))

    def rollout(self, row: Mapping[str, Any], completion: Sequence[int], ends: Sequence[int], where: str) -> Rollout:
        """What was sampled for a row, ready to be scored.

        Args:
            row: A row of the dataset.
            completion: The ids that were sampled behind its prompt.
            ends: The ids that end a text.
            where: What to call the row in a complaint.

        Raises:
            UserError: no usable context, target or prompt in the row.
        """
        from rl_think_ext.scoring.gain import Rollout  # brings torch

        closing = canonical_closing(completion, self.tags, self.tokenizer)
        thought = close_thought(closing, self.tags, ends, self.config.elicit == "prefill")
        context = self.context(row, where)
        return Rollout(self.prompt(row, context, where), context, self.target(row, where), thought)

    def _plain(self, text: str) -> Ids:
        return self._encode(text, False) if text else ()

    def _text(self, row: Mapping[str, Any], column: str, where: str, special: bool) -> Ids:
        if column not in row:
            raise UserError(f"{where}: column `{column}` is missing; there are {', '.join(sorted(row)) or 'none'}")
        text = row[column]
        if not isinstance(text, str):
            raise UserError(f"{where}: column `{column}` holds {type(text).__name__}, RLP needs plain text there")
        ids = self._encode(text, special)
        end = self.tokenizer.eos_token
        if special and ids and end and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(end):
            raise UserError(
                f"{where}: this tokenizer puts its end of text {end} behind `{column}`, and nothing follows an end: "
                "set add_eos_token: false in its tokenizer_config.json"
            )
        return ids

    def _ids(self, value: Any, column: str, where: str) -> Ids:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise UserError(f"{where}: column `{column}` holds {type(value).__name__}, expected a list of token ids")
        size = self._size
        if not all(type(i) is int and 0 <= i < size for i in value):
            raise UserError(f"{where}: column `{column}` holds something that is no id below {size}")
        return tuple(value)

    def _known(self, ids: Ids, column: str, where: str) -> Ids:
        """An unknown or padding token in scored text means that text and tokenizer do not belong together."""
        # GPT-2's unknown token is its eos, and many a pad is: such an id belongs into a text.
        ends = (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id)
        named = {self.tokenizer.unk_token_id: "unknown", self.tokenizer.pad_token_id: "padding"}
        strange = {i: name for i, name in named.items() if i not in ends}
        for position, i in enumerate(ids):
            if i is not None and i in strange:
                raise UserError(f"{where}: `{column}` holds the {strange[i]} token {i} at position {position}")
        return ids
