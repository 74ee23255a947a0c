"""Stored predictions of an RLPT run judged again, with other settings or by another judge; nothing is sampled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl_think_ext.data.prediction_rows import sample_of
from rl_think_ext.data.sources import source_name
from rl_think_ext.errors import UserError
from rl_think_ext.methods.interval import mean_interval
from rl_think_ext.methods.rlpt import SERVED, TASKS, RLPTConfig
from rl_think_ext.offline.config import with_set
from rl_think_ext.offline.replay import settings_of
from rl_think_ext.offline.rollouts import Run, next_folder

if TYPE_CHECKING:
    from rl_think_ext.offline.replay import ReplayConfig

Row = Mapping[str, Any]


def judge_again(config: ReplayConfig, run: Run) -> dict[str, Any]:
    """Judge again and compare; writes replay.json and replay.parquet, returns what replay.json holds.

    Raises:
        UserError: settings or a judge that cannot be used, or rollouts that are no predictions.
    """
    from rl_think_ext.scoring.judge import load_judge
    from rl_think_ext.scoring.prediction import PredictionScorer

    if config.model is not None:
        raise UserError("--model: predictions are judged, not scored by a model; name a judge by --set judge_model=…")
    steps, old = run.choose(config.steps), settings_of(run)
    # The rule takes none of what a served judge was told.
    kept = {name: value for name, value in old.items() if "judge=rule" not in config.set or name not in SERVED}
    new = with_set(RLPTConfig, kept, config.set, {}, str(run.source))
    if old.get("reward") == "strict" != new.reward and all(run.steps[step][0].suffix == ".jsonl" for step in steps):
        raise UserError(
            "--set reward=prefix: verl's dumps of a strict run hold the one true segment, and no longer reference for "
            "`reward: prefix`"
        )
    rows = [{**row, "step": step} for step in steps for row in run.read(step)]
    samples = [sample_of(row, f"{run.folder}, step {row['step']}, sample {i}") for i, row in enumerate(rows)]
    found = PredictionScorer(new, load_judge(new))([one for one, _ in samples], [said for _, said in samples])
    now = [
        {"score": score.value, "unscorable": score.reason, "status": prediction.status, "prediction": prediction.text}
        for score, prediction in zip(found.scores, found.predictions, strict=True)
    ]
    summary = {
        "kind": "replay",
        "method": "rlpt",
        "run": source_name(str(config.run)),
        "judge": new.judge_model if new.judge == "server" else "rule",
        "steps": steps,
        "settings": {"old": old, "new": _public(new)},
        **compare(rows, now),
    }
    folder = next_folder(run.folder, config.output)
    _write(folder, summary, rows, now)
    return {**summary, "folder": str(folder)}


def compare(old: Sequence[Row], new: Sequence[Row]) -> dict[str, Any]:
    """Stored against new verdicts: means by task, how many changed and to what, and what became of the unscorable."""
    from rl_think_ext.offline.segments import as_dict

    groups = [(row["step"], row.get("id") or row["context"], row["task"]) for row in old]
    found: dict[str, Any] = {"num_samples": len(old), "num_groups": len(set(groups))}
    for name in ("all", *TASKS):
        chosen = [i for i, row in enumerate(old) if name in ("all", row["task"])]
        before, after = [old[i]["score"] for i in chosen], [new[i]["score"] for i in chosen]
        change = [None if a is None or b is None else b - a for a, b in zip(before, after, strict=True)]
        own = [groups[i] for i in chosen]
        known = [step for step in change if step is not None]
        found[name] = {
            "old": as_dict(mean_interval(before, own)),
            "new": as_dict(mean_interval(after, own)),
            "difference": as_dict(mean_interval(change, own)),
            "largest_difference": max(map(abs, known), default=None),
            "became_right": sum(step > 0.5 for step in known),
            "became_wrong": sum(step < -0.5 for step in known),
        }
    was, now = [row["unscorable"] or None for row in old], [row["unscorable"] for row in new]
    found["became_unscorable"] = sum(a is None and b is not None for a, b in zip(was, now, strict=True))
    found["became_scorable"] = sum(a is not None and b is None for a, b in zip(was, now, strict=True))
    for when, reasons in (("old", was), ("new", now)):
        found[f"unscorable_{when}"] = {r: reasons.count(r) for r in dict.fromkeys(reasons) if r is not None}
    found["status_new"] = dict(Counter(row["status"] for row in new))
    return found


def _public(config: RLPTConfig) -> dict[str, Any]:
    """The settings without secrets in addresses (F39)."""
    from rl_think_ext.scoring.endpoint_wire import public

    return dict(public(config))


def _write(folder: Any, found: Mapping[str, Any], old: Sequence[Row], new: Sequence[Row]) -> None:
    import pyarrow as pa

    from rl_think_ext.offline.store import write_table, write_whole

    text, number = pa.string(), pa.float64()
    fields = [("id", text), ("step", pa.int64()), ("task", text), ("reference", text), ("new_prediction", text)]
    fields += [("score", number), ("new_score", number)]
    fields += [(name, text) for name in ("unscorable", "new_unscorable", "status", "new_status")]
    rows = [
        {**{name: a.get(name) for name, _ in fields}, **{f"new_{name}": value for name, value in b.items()}}
        for a, b in zip(old, new, strict=True)
    ]
    write_table(folder / "replay.parquet", pa.Table.from_pylist(rows, schema=pa.schema(fields)))
    write_whole(folder / "replay.json", (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
