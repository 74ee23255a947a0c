"""Two models on the same positions: the difference of their gains, pair by pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.methods.interval import Interval
from rl_think_ext.offline.rows import Position
from rl_think_ext.offline.segments import as_dict
from rl_think_ext.offline.summary import Measured


def check_same_tokens(one: Any, other: Any, positions: Sequence[Position], names: tuple[str, str]) -> None:
    """Refuse two tokenizers that do not write the measured ids as the same tokens: their targets would differ.

    Raises:
        UserError: naming an id and what it is in both.
    """
    check_ids(one, other, {i for p in positions for ids in (p.prompt, p.context, p.target) for i in ids}, names)


def check_ids(one: Any, other: Any, used: Iterable[int], names: tuple[str, str]) -> None:
    """Refuse two tokenizers in which one of these ids is not the same token.

    Raises:
        UserError: naming the id and what it is in both.
    """
    for i in sorted(used):
        tokens = [t.convert_ids_to_tokens(i) if i < len(t) else None for t in (one, other)]
        if tokens[0] != tokens[1]:
            shown = [f"`{token}`" if token is not None else "nothing" for token in tokens]
            raise UserError(
                f"token {i} is {shown[0]} in the tokenizer of {names[0]} and {shown[1]} in that of {names[1]}: scores "
                "can be compared on the same tokens only; take a model of the same family"
            )


def paired(one: Measured, other: Measured) -> dict[str, Any]:
    """The differences other - one of the positions' means, each with an interval over documents.

    A position counts where both have a value.
    """
    found = {name: _difference(one, values, other.means[name]) for name, values in one.means.items()}
    found["helping"] = _difference(one, one.helping(), other.helping())
    return {"verdict": verdict(found["gain"]), **{name: as_dict(interval) for name, interval in found.items()}}


def _difference(one: Measured, before: Sequence[float | None], after: Sequence[float | None]) -> Interval:
    pairs = zip(before, after, strict=True)
    return one.interval([None if a is None or b is None else b - a for a, b in pairs])


def verdict(gain: Interval) -> str:
    """What the difference means, in words.

    >>> verdict(Interval(0.5, 0.2, 0.8, 40, 8))
    'thinking helps the second model more: +0.50 nats [+0.20, +0.80] per position'
    """
    numbers = f"{gain.mean:+.2f} nats [{gain.low:+.2f}, {gain.high:+.2f}] per position"
    if gain.low > 0:
        return f"thinking helps the second model more: {numbers}"
    if gain.high < 0:
        return f"thinking helps the second model less: {numbers}"
    return f"no evidence of a difference: {numbers}"
