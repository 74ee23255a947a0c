"""Thinking formats: how a thought is asked for and how a completion is taken apart; only this file spells the tags."""

from __future__ import annotations

import re
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from rl_think_ext.errors import UserError
from rl_think_ext.records import Parts, Status

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"
OPEN_RESPONSE = "<response>"
CLOSE_RESPONSE = "</response>"
OPEN_QUERY = "<query>"
CLOSE_QUERY = "</query>"
OPEN_PREDICTION = "<|startofprediction|>"
CLOSE_PREDICTION = "<|endofprediction|>"
# What paper-strict shows the reward model in place of an answer.
NO_ANSWER = "[NULL]"

Style = Literal["think", "response", "response-only", "none"]
Mode = Literal["strict", "paper-lenient", "paper-strict"]
Elicit = Literal["prefill", "generate", "instruct"]
Closing = Literal["append", "unscorable"]

INSTRUCTION = (
    "Below is the beginning of a text. Work out what comes next: write your reasoning between "
    f"{OPEN_TAG} and {CLOSE_TAG}, then go on with the text.\n\n{{context}}\n\n"
)

# Characters that are not seen, brackets and letters that look like those of a tag: none of them makes a tag, and an
# answer with a look-alike of one in it may hold a thought (F23).
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\U000e0000-\U000e0fff]"
)
_LOOKS_LIKE = str.maketrans("‹〈⟨❮ᐸ˂›〉⟩❯ᐳ˃⁄∕⧸іιıкκтτһпոеѕѡрροοгո", "<<<<<<>>>>>>///iiikktthnnesxppoorn")
_BRACKET = re.compile("[<＜﹤‹〈〈⟨❮ᐸ˂]")
_MAX_MARKS = 30  # as in the stream-safe form of Unicode's annex 15
_MADE_OF_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"  # no marks themselves, but NFKC takes them apart into some
# Blanks are bounded, so that a run of them costs no square of its length.
_TAG = re.compile(r"<\s{0,4}/?\s{0,4}(think|response|query)\s{0,4}/?\s{0,4}>", re.IGNORECASE)
# The tags that have a meaning in a style: `<response>` is an ordinary word of an answer behind a thought.
_TAGS_OF = {"think": ("think",), "none": ("think",)}


def with_short_runs(text: str) -> str:
    """A text in which no run of combining marks is longer than 30: to sort one (NFKC) takes the square of its length.

    >>> len(with_short_runs("e" + chr(0x301) * 1000))
    31
    """
    return text if text.isascii() else _long_run_of_marks().sub(lambda run: run[0][:_MAX_MARKS], text)


@cache
def _long_run_of_marks() -> re.Pattern[str]:
    marks = "".join(chr(i) for i in range(0x300, sys.maxunicode + 1) if unicodedata.combining(chr(i)))
    return re.compile(f"[{marks}{_MADE_OF_MARKS}]{{{_MAX_MARKS + 1},}}")


def find_tag(text: str, style: Style | None = None) -> str | None:
    """The first tag of a style (None: of any), or what looks like one, as it reads when normalised; None without.

    Case, blanks inside, full width, characters that are not seen and letters of other alphabets make a look-alike.

    >>> find_tag("a </Think > b"), find_tag("x < y"), find_tag("<response>", "think")
    ('</Think >', None, None)
    """
    if not text.isascii() and _BRACKET.search(text):
        text = unicodedata.normalize("NFKC", with_short_runs(INVISIBLE.sub("", text))).translate(_LOOKS_LIKE)
    wanted = _TAGS_OF.get(style or "", ("think", "response", "query"))
    return next((found[0] for found in _TAG.finditer(text) if found[1].lower() in wanted), None)


def split(
    text: str, style: str = "think", mode: str = "strict", *, finished: bool = True, prefilled: bool = False
) -> Parts:
    """Take a completion apart into thought and answer (F22, F23; RLMT, arXiv 2509.20357).

    Style "think": `<think>thought</think>answer`, where a missing opener before a closer is a prefilled one.
    "response": `<think>thought</think><response>answer</response>`; "response-only": `<response>answer</response>`;
    what stands behind the last tag is cut, what stands before a part's opener is no_open. "none": all is the answer.

    Mode "strict": the answer is None unless the status is "ok"; tags are matched to the letter, a second tag of the
    style, or a look-alike in the answer, is "extra_tags"; thought and answer lose the white space around them.
    "paper-lenient" and "paper-strict": the answer is what the authors' parser takes, whatever the status says.

    Args:
        finished: False where sampling ran into its length limit: what was not whole by then is "truncated".
        prefilled: The prompt ends with the opening tag, so a text without tags is a thought that was never closed.

    Raises:
        ValueError: a style or mode that does not exist.

    >>> split("<think>2 and 2</think>4")
    Parts(thought='2 and 2', answer='4', status='ok')
    >>> split("2 and 2</think>4").status, split("<think>2 and").status, split("4").status
    ('ok', 'no_close', 'no_open')
    >>> split("<think>2 and", mode="paper-lenient").answer, split("<think>2 and", mode="paper-strict").answer
    ('<think>2 and', '[NULL]')
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode is one of {', '.join(get_args(Mode))}, got {mode!r}")
    if style not in get_args(Style):
        raise ValueError(f"style is one of {', '.join(get_args(Style))}, got {style!r}")
    if style in ("think", "none"):
        parts = _split_think(text, finished, prefilled) if style == "think" else _split_none(text, finished)
    else:
        parts = _split_response(text, style == "response", finished, prefilled)
    if mode == "strict":
        return parts
    return Parts(parts.thought, _paper_answer(text, style, mode == "paper-lenient"), parts.status)


def _split_think(text: str, finished: bool, prefilled: bool) -> Parts:
    opened, body = _opened(text)
    thought, closed, answer = body.partition(CLOSE_TAG)
    if OPEN_TAG in body or find_tag(answer, "think"):
        return Parts(thought.strip(), None, "extra_tags")
    if not closed:
        return _unclosed(body, opened or prefilled, finished)
    return _whole(thought, answer, finished)


def _split_none(text: str, finished: bool) -> Parts:
    if find_tag(text, "think"):
        return Parts(None, None, "extra_tags")
    return _whole(None, text, finished)


def _split_response(text: str, thinks: bool, finished: bool, prefilled: bool) -> Parts:
    """The answer between its tags, behind a thought when `thinks`; nothing else may stand before it."""
    before, answered, rest = text.partition(OPEN_RESPONSE)
    answer, ended, behind = rest.partition(CLOSE_RESPONSE)
    opened, body = _opened(before) if thinks else (False, "")
    thought, closed, between = body.partition(CLOSE_TAG) if thinks else ("", "", before)
    begun = opened or prefilled or bool(closed)
    shown = thought.strip() if thinks and begun else None
    if OPEN_TAG in body or CLOSE_RESPONSE in before or find_tag(between, "think") or find_tag(answer + " " + behind):
        return Parts(shown, None, "extra_tags")
    if thinks and not closed:
        # An answer that was opened inside a thought is no answer.
        return _unclosed(body, begun, finished or bool(answered))
    if not answered and not finished and OPEN_RESPONSE.startswith(between.strip()):
        return Parts(shown, None, "truncated")
    if between.strip() or not answered:
        return Parts(shown, None, "no_open")
    if not ended:
        return Parts(shown, None, "no_close" if finished else "truncated")
    return _whole(thought if thinks else None, answer, True)


def _opened(text: str) -> tuple[bool, str]:
    """Whether a text begins with the opening tag, and what follows it; without it the whole text."""
    body = text.lstrip()
    return (True, body[len(OPEN_TAG) :]) if body.startswith(OPEN_TAG) else (False, text)


def _unclosed(body: str, opened: bool, finished: bool) -> Parts:
    if not opened:
        return Parts(None, None, "no_open")
    return Parts(body.strip(), None, "no_close" if finished else "truncated")


def _whole(thought: str | None, answer: str, finished: bool) -> Parts:
    """All tags stand where they should: is there something between them, and was it written to its end?"""
    shown, answer = None if thought is None else thought.strip(), answer.strip()
    status: Status = "ok" if finished else "truncated"
    if shown == "":
        status = "empty_thought"
    elif not answer and finished:
        status = "empty_response"
    return Parts(shown, answer if status == "ok" else None, status)


def _paper_answer(text: str, style: str, lenient: bool) -> str:
    """The authors' parser, to the letter: what it shows the reward model, whatever the text is."""
    if style == "none":
        return text
    _, found, answer = text.partition(CLOSE_TAG if style == "think" else OPEN_RESPONSE)
    if not found and not lenient:
        return NO_ANSWER
    answer = answer.lstrip() if found else text
    if style == "think":
        return answer
    answer, ended, _ = answer.partition(CLOSE_RESPONSE)
    if not ended:
        return answer if lenient else NO_ANSWER
    return answer.rstrip()


def join(thought: str | None, answer: str, style: Style) -> str:
    """The text that `split` takes apart into just these parts: what supervised training shows a model.

    Raises:
        ValueError: parts that could not be told apart again: a tag inside, a blank one, or a thought that is missing.

    >>> join("2 and 2", "4", "think")
    '<think>\\n2 and 2\\n</think>\\n\\n4'
    """
    inner = f"{OPEN_TAG}\n{thought}\n{CLOSE_TAG}\n" if style in ("think", "response") else ""
    outer = f"{OPEN_RESPONSE}\n{answer}\n{CLOSE_RESPONSE}" if style in ("response", "response-only") else answer
    text = inner + ("\n" if style == "think" else "") + outer
    parts = split(text, style)
    kept = thought.strip() if inner and thought is not None else None
    if parts != Parts(kept, answer.strip(), "ok"):
        raise ValueError(f"thought and answer do not make a text of style {style}: {parts.status}")
    return text


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
    (an id of `ends`) instead of closing, is "no_close": the tag is appended here, and the caller's policy decides
    whether it counts. `opened` says that the prompt ends with the opening tag; otherwise the completion has to
    begin with it ("no_open"). A closed thought with a second opening tag is "extra_tags". One without a token is
    "empty_thought".

    >>> close_thought([5, 6, 2, 9], TagIds((1,), (2,)), ends=[0])
    ThoughtIds(ids=(5, 6, 2), num_sampled=3, status='ok')
    >>> close_thought([5, 6, 0], TagIds((1,), (2,)), ends=[0])
    ThoughtIds(ids=(5, 6, 2), num_sampled=3, status='no_close')
    """
    at = find(completion, tags.close)
    status: Status = "ok" if at >= 0 else "no_close"
    thought = list(completion[:at] if at >= 0 else completion)
    while at < 0 and thought and thought[-1] in ends:
        thought.pop()
    start = 0
    if not opened:
        start = find(thought, tags.open)
        if start != 0:
            status, start = "no_open", 0
        else:
            start = len(tags.open)
    body = thought[start:]
    if not body and status in ("ok", "no_close"):
        status = "empty_thought"
    elif status == "ok" and find(body, tags.open) >= 0:
        status = "extra_tags"
    num_sampled = at + len(tags.close) if at >= 0 else len(completion)
    return ThoughtIds((*thought, *tags.close), num_sampled, status)
