"""One row of RLMT at 80 columns, or as JSON: texts line by line, with every space and control character to be seen."""

from __future__ import annotations

import textwrap

from rl_think_ext.cli.doctor.boundary import visible
from rl_think_ext.cli.doctor.live_rlmt import LiveRLMT, Shown
from rl_think_ext.cli.doctor.live_supervised import Example
from rl_think_ext.cli.doctor.live_view import as_json, part_lines, wrapped

_WIDTH = 76
# Lines of a text that are shown from its beginning and its end.
_HEAD, _TAIL = 12, 8


def show(seen: LiveRLMT, json: bool = False) -> None:
    """Print the ids at the boundaries, the parts, what the reward model is shown, and the score."""
    if json:
        as_json(seen)
        return
    print(wrapped(f"{seen.row} of {seen.source}"))
    print(wrapped(f"sampled: {seen.sampler}"))
    print("\nid:token of prompt and output, apart at every tag (␣ is a space)")
    for part in seen.parts:
        print(part_lines(part))
    print(f"\noutput: {seen.status}; {seen.num_sampled} tokens were sampled and would be trained")
    print(block("thought", seen.thought))
    print(block("answer", seen.answer))
    if seen.shown is not None:
        print(f"\n{wrapped(_counts(seen.shown))}")
        print(block("", seen.shown.text))
    for remark in seen.remarks:
        print(wrapped(remark.text, "! " if remark.moves else "  "))
    print(f"\n{wrapped(_score(seen))}")


def _counts(shown: Shown) -> str:
    bos = f"{shown.num_bos} BOS" if shown.num_bos else "no BOS"
    cut = f"{shown.num_cut} cut off the prompt" if shown.num_cut else "nothing cut"
    is_shown = "would be shown of an answer" if shown.stand_in else "is shown"
    return f"what the reward model {shown.model} {is_shown}: {shown.num_tokens} tokens, {bos}, {cut}"


def _score(seen: LiveRLMT) -> str:
    return f"no score: {seen.reason}" if seen.score is None else f"score: {seen.score:+.4f}"


def show_example(seen: Example, json: bool = False) -> None:
    """Print the prompt, and below it each side that is trained, marked."""
    if json:
        as_json(seen)
        return
    print(wrapped(f"{seen.row} of {seen.source}"))
    print(wrapped(f"trained: {seen.loss}"))
    print(f"\nprompt, {seen.num_prompt_tokens} tokens, read and not trained (␣ ends a line with a space)")
    print(block("", seen.prompt))
    for side in seen.sides:
        print(f"\n{side.name}, {side.num_tokens} tokens, {side.status}: trained is what stands behind >")
        print(block("", side.text, "> "))


def block(name: str, text: str | None, mark: str = "| ") -> str:
    """A text with a mark before each of its own lines, the middle of a long text left out."""
    if text is None:
        return f"{name}: none"
    lines = [
        (mark if i == 0 else " " * len(mark)) + part
        for line in text.split("\n")
        for i, part in enumerate(_wrapped_whole(_spaced(line)))
    ]
    if len(lines) > _HEAD + _TAIL + 1:
        lines = [*lines[:_HEAD], f"… {len(lines) - _HEAD - _TAIL} more lines …", *lines[-_TAIL:]]
    return "\n".join([*([f"{name}:"] if name else []), *lines])


def _wrapped_whole(line: str) -> list[str]:
    """A line broken to the width, with nothing of it lost."""
    return textwrap.wrap(line, _WIDTH, break_on_hyphens=False, drop_whitespace=False) or [""]


def _spaced(line: str) -> str:
    """A line as it is, control characters and the white space at its ends to be seen."""
    body = line.strip(" ")
    at = line.find(body) if body else len(line)
    inner = "".join(char if char == " " else visible(char) for char in body)
    return "␣" * at + inner + "␣" * (len(line) - at - len(body))
