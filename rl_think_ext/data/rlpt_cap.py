"""Prompts of at most so many tokens, as the policy reads them: every text is encoded once, not every prompt.

Tokens of a context are the sum over its segments. Where a prompt is put together a token more or fewer may come out at
each joint: contexts are cut `SLACK` below the cap. A prompt itself is encoded where nothing would have to be cut, or
nothing could be; of each text the longest one is looked at.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from rl_think_ext.data.lengths import Lengths
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import TASKS, Task, render_asr, render_msr

if TYPE_CHECKING:
    from rl_think_ext.data.rlpt_samples import Drawn, Text
    from rl_think_ext.messages import Message

SLACK = 8


class TextLengths(Lengths):
    """Lengths of prompts that are plain texts: a trainer encodes them as the tokenizer does."""

    def __post_init__(self) -> None:
        """No chat template is needed."""

    def render(self, messages: Sequence[Message]) -> str:
        """The text itself."""
        return messages[-1]["content"]

    @property
    def adds_special(self) -> bool:
        """The trainer's tokenizer puts its own ids around a text."""
        return True


def prompt_lengths(name: str, form: str) -> Lengths:
    """The lengths of prompts in the ids of a folder's or a hub name's tokenizer.

    Raises:
        UserError: no tokenizer there, one without offsets, or without the chat template that chats need.
    """
    from rl_think_ext.scoring.load import load_tokenizer

    tokenizer = load_tokenizer(name)
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer {name} gives no offsets; a fast one (tokenizer.json) is needed")
    if form == "chat" and not tokenizer.chat_template:
        raise UserError(f"the tokenizer {name} has no chat template: build prompts that are texts, with `form` text")
    return (Lengths if form == "chat" else TextLengths)(tokenizer, name)


class Sums(NamedTuple):
    """Tokens of a text up to where each of its segments begins, and ends."""

    starts: list[int]
    ends: list[int]


class PromptCap:
    """Cuts contexts on their left, at the start of a segment, so that prompts have at most `most` tokens.

    Raises:
        UserError: the words around a text are longer than that.
    """

    def __init__(self, lengths: Lengths, most: int) -> None:
        self.lengths, self.most = lengths, most
        encoder: Any = lengths.tokenizer.backend_tokenizer
        encoder.no_truncation()
        encoder.no_padding()
        self._encode = encoder.encode_batch_fast
        words = [render_asr(""), render_msr("", "")]
        self._around: dict[Task, int] = dict(zip(TASKS, self._counts(words), strict=True))
        if max(self._around.values()) >= most:
            listed = ", ".join(f"{task} {number}" for task, number in self._around.items())
            raise UserError(f"`max_prompt_tokens` is {most}, and without a text the prompts have {listed} tokens")

    def firsts(self, text: Text, targets: Sequence[Drawn]) -> list[int | None]:
        """The first segment that each target's prompt shows; None where not even the one before the target fits."""
        if not targets or self._short(text.text):
            return [0] * len(targets)
        sums = self._sums(text)
        needed = [self._needed(drawn, sums) for drawn in targets]
        sure = [
            bisect_left(sums.starts, need - self.most + SLACK, hi=d.number)
            for d, need in zip(targets, needed, strict=True)
        ]
        # From one segment earlier a prompt may fit all the same: worth a look for a whole context, or a last chance.
        near = {
            i: first - 1
            for i, first in enumerate(sure)
            if first in (1, targets[i].number) and needed[i] - sums.starts[first - 1] <= self.most + SLACK
        }
        fits = self._fit(text, [(targets[i], first) for i, first in near.items()])
        if not self._hold(text, targets, sure, sums, needed):
            return [self._exactly(text, drawn) for drawn in targets]
        found = dict(enumerate(sure)) | {i: first for (i, first), fit in zip(near.items(), fits, strict=True) if fit}
        return [found[i] if found[i] < drawn.number else None for i, drawn in enumerate(targets)]

    def _hold(
        self, text: Text, targets: Sequence[Drawn], sure: Sequence[int], sums: Sums, needed: Sequence[int]
    ) -> bool:
        """Whether the sums hold for the longest prompt: the last quarter of its context is encoded, or all of it."""
        lengths = {i: needed[i] - sums.starts[first] for i, first in enumerate(sure) if first < targets[i].number}
        longest = max(lengths, key=lengths.__getitem__, default=None)
        if longest is None or 4 * lengths[longest] <= 3 * self.most:
            return True
        drawn, first = targets[longest], sure[longest]
        middle = drawn.number - max(1, (drawn.number - first) // 4)
        stretch = text.text[text.starts[middle] : text.starts[drawn.number]]
        number = len(self._encode([stretch], add_special_tokens=False)[0])
        off = abs(number - sums.starts[drawn.number] + sums.starts[middle])
        return off <= SLACK // 4 or self._fit(text, [(drawn, first)])[0]

    def _short(self, text: str) -> bool:
        """Whether no prompt of a text can be too long: of ASCII no tokenizer makes more tokens than characters."""
        return text.isascii() and len(text) + max(self._around.values()) <= self.most

    def _sums(self, text: Text) -> Sums:
        """Tokens up to where each segment begins and ends; the white space before a segment is its own."""
        places = [text.starts[0]]
        for start, end in text.spans:
            places += [places[-1] + len(text.text[places[-1] : start].rstrip()), end]
        pieces = [text.text[start:end] for start, end in pairwise(places)]
        encoded = iter(self._encode([piece for piece in pieces if piece], add_special_tokens=False))
        sums = [*accumulate(len(next(encoded)) if piece else 0 for piece in pieces)]
        return Sums(sums[::2], sums[1::2])

    def _needed(self, drawn: Drawn, sums: Sums) -> int:
        """Tokens of a prompt that shows everything before the target."""
        behind = sums.ends[drawn.number + 1] - sums.ends[drawn.number] if drawn.task == "msr" else 0
        return self._around[drawn.task] + sums.starts[drawn.number] + behind

    def _exactly(self, text: Text, drawn: Drawn) -> int | None:
        """By the prompts themselves, from the longest on."""
        places = range(drawn.number)
        first = bisect_left(places, True, key=lambda i: self._fit(text, [(drawn, i)])[0])
        return first if first < drawn.number else None

    def _fit(self, text: Text, asked: Sequence[tuple[Drawn, int]]) -> list[bool]:
        """Whether prompts have no more tokens than they may."""
        return [number <= self.most for number in self._counts([text.prompt(*one) for one in asked])]

    def _counts(self, prompts: Sequence[str]) -> list[int]:
        rendered = [self.lengths.render([{"role": "user", "content": prompt}]) for prompt in prompts]
        whole = [text for text in rendered if text is not None]
        if len(whole) < len(rendered):
            raise UserError(f"the chat template of {self.lengths.name} refuses a prompt: {self.lengths.refusals[-1]}")
        # The encoder itself: the tokenizer around it makes lists of all ids, and so takes half as long again.
        return [len(encoded) for encoded in self._encode(whole, add_special_tokens=self.lengths.adds_special)]
