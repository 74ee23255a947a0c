"""Outputs before and after, side by side, chosen by their place and never by what they are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl_think_ext.report.samples import Sample
from rl_think_ext.report.text import number

_MOST = 6


@dataclass(frozen=True)
class Said:
    """An output, what it was worth (None: nobody knows) and when it was said.

    RLMT's and RLPT's have a `status`; a thought, where RLMT has one, stands apart from its `text`, the answer. With
    `is_whole` nothing was taken out of the output, and the text is all of it.
    """

    when: str
    text: str
    value: float | None = None
    reason: str | None = None
    context: str = ""
    target: str = ""
    status: str | None = None
    thought: str | None = None
    paid: float | None = None
    is_whole: bool = False


@dataclass(frozen=True)
class Pair:
    """A context and its target with outputs on it; `same` says whether all were said on this very context."""

    context: str
    target: str
    said: tuple[Said, ...]
    same: bool = True


def held_out(measured: Mapping[str, Any]) -> list[Pair]:
    """The pairs that a held-out measurement kept."""
    entries = measured.get("thoughts")
    pairs = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping):
            said = [
                Said(when, str(entry.get(when) or ""), number(entry.get(f"{when}_gain", entry.get(f"{when}_score"))))
                for when in ("before", "after")
            ]
            pairs.append(Pair(str(entry.get("context") or ""), str(entry.get("target") or ""), tuple(said)))
    return pairs[:_MOST]


def matched(first: Sequence[Sample], final: Sequence[Sample]) -> list[Pair]:
    """The output of median worth on a context at the beginning, and at the end on the same one or on one as hard."""
    before, after = _by_id(first), _by_id(final)
    both = [name for name in before if name in after]
    pairs = [(before[name], after[name], True) for name in _spread(both)]
    # As hard: the target had nearly the same log-prob without a thought; of RLMT's prompts the length is known.
    rest = [name for name in after if name not in both]
    for name in _spread([n for n in before if n not in both], _MOST - len(pairs)):
        if rest:
            near = min(rest, key=lambda other: _distance(before[name][0], after[other][0]))
            rest.remove(near)
            pairs.append((before[name], after[near], False))
    return [_pair(old, new, same) for old, new, same in pairs]


def alone(samples: Sequence[Sample], when: str) -> list[Pair]:
    """Outputs of one measurement: on each of some contexts the one that is worth least, and the one worth most."""
    pairs = []
    for group in _spread(list(_by_id(samples).values())):
        ranked = _ranked(group)
        chosen = [ranked[0], ranked[-1]] if len(ranked) > 1 else ranked
        what = "gain" if chosen[0].status is None else "score"
        names = (f"least {what} here", f"greatest {what} here") if len(chosen) > 1 else (when,)
        said = tuple(_said(name, sample) for name, sample in zip(names, chosen, strict=True))
        pairs.append(Pair(group[0].context, group[0].target, said))
    return pairs


def unscored(samples: Sequence[Sample]) -> list[Said]:
    """One output of each reason for which there is no score, the first of each."""
    first: dict[str, Sample] = {}
    for sample in samples:
        if sample.value is None:
            first.setdefault(sample.reason or "no score", sample)
    return [_said("" if s.step is None else f"step {s.step:,.0f}", s) for s in list(first.values())[:_MOST]]


def _pair(old: Sequence[Sample], new: Sequence[Sample], same: bool) -> Pair:
    chosen = [(when, _ranked(group)[(len(group) - 1) // 2]) for when, group in (("before", old), ("after", new))]
    return Pair(old[0].context, old[0].target, tuple(_said(when, sample) for when, sample in chosen), same)


def _said(when: str, sample: Sample) -> Said:
    said = Said(when, sample.text, sample.value, sample.reason, sample.context, sample.target)
    # Without an answer the text is the whole output, and the thought in it already.
    thought = None if sample.answer is None else sample.thought
    is_whole = sample.status is not None and sample.answer is None
    return replace(said, status=sample.status, thought=thought, paid=sample.paid, is_whole=is_whole)


def _by_id(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.id, []).append(sample)
    return found


def _ranked(group: Sequence[Sample]) -> list[Sample]:
    """By worth, those without one first."""
    return sorted(group, key=lambda sample: -math.inf if sample.value is None else sample.value)


def _distance(one: Sample, other: Sample) -> float:
    if one.direct is None or other.direct is None:
        return abs(len(one.context) - len(other.context)) + 1e3
    return abs(one.direct - other.direct)


def _spread(items: Sequence[Any], most: int = _MOST) -> list[Any]:
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)
