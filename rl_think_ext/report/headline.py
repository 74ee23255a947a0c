"""Before and after in a few numbers, each with its interval: held-out, or from a run's own samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl_think_ext.methods.interval import Interval, mean_interval
from rl_think_ext.report import samples
from rl_think_ext.report.folder import Folder
from rl_think_ext.report.kinds import RLMT, RLP, RLPT, Kind
from rl_think_ext.report.samples import Sample
from rl_think_ext.report.text import number, plain

# Scorable samples that each end of a run has to give.
LEAST_SAMPLES = 64


@dataclass(frozen=True)
class Measured:
    """Before and after of one folder; `quantities` maps a quantity to its intervals by "before", "after" or "now".

    `remark` says what the numbers are against, or of, `clusters` what the intervals are over, `direct` whose weights
    answer without a thought.
    """

    quantities: Mapping[str, Mapping[str, Interval]]
    source: str
    ceiling: float | None = None
    remark: str = "Gain against the frozen start"
    clusters: str = "whole texts"
    direct: str = "the policy"


def measured(folder: Folder) -> Measured | None:
    """Held-out numbers where there are any, otherwise the first against the last samples; None: neither."""
    if folder.offline:
        return _offline(folder.info)
    if folder.measured is not None:
        return _remarked(_held_out(folder.measured, folder.kind), folder)
    if not folder.tables or not folder.kind.quantities:
        return None
    first, final = samples.ends(folder, LEAST_SAMPLES)
    return _remarked(replace(_from_samples(first, final, folder.kind), direct=folder.baseline), folder)


def _remarked(found: Measured, folder: Folder) -> Measured:
    """With the words of RLMT and RLPT where it is one: what was scored, and whether a thought was shown."""
    if folder.kind is RLPT:
        return replace(found, remark="Verdicts; where there is none, none is counted", clusters="whole segments")
    if folder.kind is not RLMT:
        return found
    if not any(one.num_values or one.mean == one.mean for one in found.quantities.get("score", {}).values()):
        return replace(found, remark="Not one answer among them got a score", clusters="whole prompts")
    if folder.shows_thoughts:
        shown = "; the reward model saw whole outputs (score: full)"
    else:
        shown = "; their thoughts were not shown to the reward model" if folder.thinks else ""
    return replace(found, remark=f"Scores of the answers that got one{shown}", clusters="whole prompts")


def _interval(value: Any) -> Interval:
    """An interval as a JSON file holds it; a bare number has none around it."""
    if not isinstance(value, Mapping):
        value = {"mean": value}
    found = [number(value.get(name)) for name in ("mean", "low", "high")]
    mean, low, high = (math.nan if end is None else end for end in found)
    num_values, num_clusters = (int(number(value.get(name)) or 0) for name in ("num_values", "num_clusters"))
    return Interval(mean, low, high, num_values, num_clusters)


def _held_out(found: Mapping[str, Any], kind: Kind) -> Measured:
    sides = {when: found[when] for when in ("before", "after") if isinstance(found.get(when), Mapping)}
    quantities = {
        one.key: {when: _interval(side[one.key]) for when, side in sides.items() if side.get(one.key) is not None}
        for one in kind.quantities
    }
    what = str(found.get("what") or "held-out rows")
    prefix = "Measured on " if "held-out" in what else "Measured held-out: "
    return Measured(quantities, f"{prefix}{plain(found.get('rows'))} {what}", number(found.get("ceiling")))


def _offline(found: Mapping[str, Any]) -> Measured:
    names = {"gain": "gain", "accuracy": "accuracy", "baseline_accuracy": "direct_accuracy"}
    quantities = {to: {"now": _interval(found[name])} for name, to in names.items() if found.get(name) is not None}
    counts = (plain(found.get(f"num_{what}")) for what in ("samples", "positions", "documents"))
    source = "{} thoughts at {} places of {} documents, no training".format(*counts)
    clusters = f"{found.get('clustered_by') or 'document'}s"
    return Measured(quantities, source, None, "Gain against the same model without a thought", clusters)


def _from_samples(first: Sequence[Sample], final: Sequence[Sample], kind: Kind = RLP) -> Measured:
    sides = {when: side for when, side in (("before", first), ("after", final)) if side}
    quantities = {
        one.key: {when: _mean(side, one.attribute) for when, side in sides.items()} for one in kind.quantities
    }
    texts = kind.quantities[0].texts
    shown = " → ".join(f"{samples.steps_of(side)} ({_size(side, texts)})" for side in sides.values())
    only = "" if first else "; a single table, so there is no before"
    frozen = all(sample.frozen for side in sides.values() for sample in side)
    against = "the frozen start" if frozen else "the baseline of the reward, because `frozen_gain` is off"
    return Measured(quantities, f"Training samples, not held out: {shown}{only}", None, f"Gain against {against}")


def _size(side: Sequence[Sample], texts: str) -> str:
    """What stands behind an interval: outputs, and the texts that they belong to."""
    return f"{len(side):,} samples of {len({sample.context for sample in side}):,} {texts}"


def _mean(side: Sequence[Sample], attribute: str) -> Interval:
    return mean_interval([getattr(s, attribute) for s in side], [s.context for s in side])
