"""One row's ids and scores at 80 columns, or as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from typing import Any

from rl_think_ext.cli.doctor.boundary import Part, visible
from rl_think_ext.cli.doctor.live import Live

_WIDTH = 80
_NAME = 13
# Of a longer part, so many tokens are shown at its beginning and at its end.
_BEGINNING, _END = 8, 16

_STATUS = {
    "ok": "closed by the policy",
    "no_close": "never closed",
    "extra_tags": "closed, with a second opening tag inside",
    "empty_thought": "without a token",
    "no_open": "without the opening tag that it has to begin with",
}


def as_json(live: Any) -> None:
    """Print the record; a log-prob that is not finite is null."""
    print(json.dumps(_plain(dataclasses.asdict(live)), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(live: Live) -> None:
    """Print the parts with their ids, the status, the targets' log-probs, the gain, and the boundaries."""
    print(wrapped(f"{live.row} of {live.source}"))
    print(wrapped(f"sampled: {live.sampler}"))
    print("\nid:token, every boundary of what is scored (␣ is a space)")
    for part in live.parts:
        print(part_lines(part))
    print(f"\n{wrapped(status(live))}")
    print(f"\nlog-prob in nats of the target ({live.method})")
    for line in target_lines(live):
        print(line)
    print("\nboundaries")
    for remark in live.remarks:
        print(wrapped(remark.text, "! " if remark.moves else "  "))


def part_lines(part: Part) -> str:
    """`name  id:token id:token …`, wrapped; the middle of a long part is left out and counted."""
    tokens = [f"{i}:{visible(text)}" for i, text in zip(part.ids, part.text, strict=True)]
    if len(tokens) > _BEGINNING + _END + 1:
        left_out = len(tokens) - _BEGINNING - _END
        tokens = [*tokens[:_BEGINNING], f"…({left_out:,}_more)…", *tokens[-_END:]]
    lines = textwrap.wrap(" ".join(tokens) or "–", _WIDTH - _NAME, break_on_hyphens=False)
    return "\n".join(f"{part.name if i == 0 else '':<{_NAME}}{line}" for i, line in enumerate(lines))


def status(live: Live) -> str:
    """What became of the thought, in words."""
    said = (
        f"thought: {live.status}, {_STATUS[live.status]}; {live.num_sampled} tokens were sampled and would be trained"
    )
    if not live.closed and live.reason is None:
        return f"{said}; the closing tag was added for the score (closing: append)."
    return f"{said}."


def target_lines(live: Live) -> list[str]:
    """The table of the targets, and the reward under it, or the reason why there is none."""
    heads = f"{'id':>8} {'token':<14} {'with':>9} {'without':>9} {'gain':>9} {'tag left in':>12}"
    rows = [
        f"{one.id:>8} {visible(one.text)[:14]:<14} {one.reasoned:>9.4f} {one.baseline:>9.4f} "
        f"{one.gain:>+9.4f} {one.unmasked:>12.4f}"
        for one in live.targets
    ]
    end = f"no reward: {live.reason}" if live.reward is None else f"reward (rlp): {live.reward:+.4f}"
    return [heads, *rows, end] if rows else [end]


def wrapped(text: str, first: str = "") -> str:
    """A text at 80 columns, with a mark before its first line."""
    return textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)
