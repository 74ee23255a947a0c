"""Thinking formats: how a thought is asked for and how a completion is taken apart; only this file spells the tags."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from rl_think_ext.errors import UserError
from rl_think_ext.records import Parts, Status

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"

Style = Literal["think", "none"]
Elicit = Literal["prefill", "generate", "instruct"]
Closing = Literal["append", "unscorable"]

INSTRUCTION = (
    "Below is the beginning of a text. Work out what comes next: write your reasoning between "
    f"{OPEN_TAG} and {CLOSE_TAG}, then go on with the text.\n\n{{context}}\n\n"
)


def split(text: str, style: str = "think", mode: str = "strict") -> Parts:
    """Take a completion apart into thought and answer (spec F22, F23).

    Style "think": `<think>thought</think>answer`, where a missing opener before a closer is a prefilled one. Style
    "none": the whole text is the answer, unless a tag stands in it. Mode "strict": the answer is None unless the
    status is "ok"; tags are matched to the letter, and a second tag of any kind is "nested".

    Raises:
        ValueError: a style or mode that does not exist here.

    >>> split("<think>2 and 2</think>4")
    Parts(thought='2 and 2', answer='4', status='ok')
    >>> split("2 and 2</think>4").status, split("<think>2 and").status
    ('ok', 'unclosed')
    """
    if mode != "strict":
        raise ValueError(f"mode is 'strict', got {mode!r}")
    if style == "none":
        tagged = OPEN_TAG in text or CLOSE_TAG in text
        return Parts(None, None if tagged or not text else text, "nested" if tagged else "ok" if text else "empty")
    if style != "think":
        raise ValueError(f"style is 'think' or 'none', got {style!r}")
    return _split_think(text)


def _split_think(text: str) -> Parts:
    body = text.lstrip()
    body = body[len(OPEN_TAG) :] if body.startswith(OPEN_TAG) else text
    if CLOSE_TAG not in body:
        status: Status = "nested" if OPEN_TAG in body else "unclosed"
        return Parts(body, None, status)
    thought, answer = body.split(CLOSE_TAG, 1)
    if any(tag in part for tag in (OPEN_TAG, CLOSE_TAG) for part in (thought, answer)):
        return Parts(thought, None, "nested")
    return Parts(thought, answer, "ok")


def instruction_sides(elicit: Elicit, instruction: str = INSTRUCTION) -> tuple[str, str]:
    """What stands before and behind a context when a thought is asked for.

    Raises:
        UserError: an instruction without exactly one `{context}`.

    >>> instruction_sides("prefill")
    ('', '<think>')
    """
    if elicit == "prefill":
        return "", OPEN_TAG
    if elicit == "generate":
        return "", ""
    # Split, not str.format: braces of the user's text and of the instruction itself stay as they are (F28).
    sides = instruction.split("{context}")
    if len(sides) != 2:
        raise UserError(f"the instruction holds {len(sides) - 1} times {{context}}; it has to hold it exactly once")
    return sides[0], sides[1]


def render(context: str, elicit: Elicit = "prefill", instruction: str = INSTRUCTION) -> str:
    """The prompt that the policy is shown for a context.

    >>> render("1 + 1 =")
    '1 + 1 =<think>'
    """
    before, behind = instruction_sides(elicit, instruction)
    return before + context + behind


@dataclass(frozen=True)
class TagIds:
    """The token ids of both tags, as the tokenizer writes them; one id each when they are tokens of their own."""

    open: tuple[int, ...]
    close: tuple[int, ...]

    @property
    def single(self) -> bool:
        """Whether both tags are one token, so that a sampler can stop at an id."""
        return len(self.open) == len(self.close) == 1

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TagIds:
        """The tags in a tokenizer's own ids.

        Raises:
            UserError: a tag that the tokenizer turns into nothing or into its unknown token.
        """
        ids = []
        for tag in (OPEN_TAG, CLOSE_TAG):
            found = tuple(tokenizer(tag, add_special_tokens=False)["input_ids"])
            if not found or (tokenizer.unk_token_id is not None and tokenizer.unk_token_id in found):
                raise UserError(f"this tokenizer cannot write {tag}: add it with tokenizer.add_tokens([{tag!r}])")
            ids.append(found)
        return cls(*ids)


class ThoughtIds(NamedTuple):
    """A thought in token ids, between the prompt and the target."""

    ids: tuple[int, ...]
    num_sampled: int
    status: Status


def find(ids: Sequence[int], part: Sequence[int]) -> int:
    """The first index at which `part` stands in `ids`, or -1."""
    n = len(part)
    return next((i for i in range(len(ids) - n + 1) if tuple(ids[i : i + n]) == tuple(part)), -1)


def canonical_closing(completion: Sequence[int], tags: TagIds, tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """A completion whose closing tag stands in the tag's own ids, whatever pieces it was written in.

    A tag of several tokens may be sampled as other pieces that decode to the same text. What was sampled before the
    first token that touches the tag stays as it is.
    """
    if tags.single or find(completion, tags.close) >= 0:
        return completion

    def text(num: int) -> str:
        return str(tokenizer.decode(completion[:num], skip_special_tokens=False))

    thought, closed, _ = text(len(completion)).partition(CLOSE_TAG)
    if not closed:
        return completion
    kept = bisect_right(range(len(completion) + 1), len(thought), key=lambda num: len(text(num))) - 1
    while kept > 0 and not thought.startswith(text(kept)):
        kept -= 1
    rest = thought[len(text(kept)) :]
    between = tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else ()
    return (*completion[:kept], *between, *tags.close)


def close_thought(completion: Sequence[int], tags: TagIds, ends: Sequence[int], opened: bool = True) -> ThoughtIds:
    """The thought of a completion in ids, closed in the tags' canonical ids.

    What stands behind the first closing tag is no part of it. A thought that was cut off, or that ended the text
    (an id of `ends`) instead of closing, is "unclosed": the tag is appended here, and the caller's policy decides
    whether it counts. `opened` says that the prompt ends with the opening tag; otherwise the completion has to
    begin with it ("unopened"). A closed thought with a second opening tag is "nested". One without a token is "empty".

    >>> close_thought([5, 6, 2, 9], TagIds((1,), (2,)), ends=[0])
    ThoughtIds(ids=(5, 6, 2), num_sampled=3, status='ok')
    >>> close_thought([5, 6, 0], TagIds((1,), (2,)), ends=[0])
    ThoughtIds(ids=(5, 6, 2), num_sampled=3, status='unclosed')
    """
    at = find(completion, tags.close)
    status: Status = "ok" if at >= 0 else "unclosed"
    thought = list(completion[:at] if at >= 0 else completion)
    while at < 0 and thought and thought[-1] in ends:
        thought.pop()
    start = 0
    if not opened:
        start = find(thought, tags.open)
        if start != 0:
            status, start = "unopened", 0
        else:
            start = len(tags.open)
    body = thought[start:]
    if not body and status in ("ok", "unclosed"):
        status = "empty"
    elif status == "ok" and find(body, tags.open) >= 0:
        status = "nested"
    num_sampled = at + len(tags.close) if at >= 0 else len(completion)
    return ThoughtIds((*thought, *tags.close), num_sampled, status)
