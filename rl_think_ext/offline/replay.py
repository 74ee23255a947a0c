"""Stored rollouts of a run scored again, with other settings or another model; nothing is sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from rl_think_ext.data.sources import source_name
from rl_think_ext.errors import UserError
from rl_think_ext.methods.interval import mean_interval
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.offline.config import with_pairs
from rl_think_ext.offline.rollouts import IDS, Run, next_folder

NUMBERS = ("gain", "reasoned", "baseline", "frozen", "frozen_gain", "accuracy", "baseline_accuracy")


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Score a run's stored completions again, with other settings, another model or another judge.

    RLP: without --model it is the model that the run began with, so the first step gives the numbers that were logged.
    The start stands in for the average of `baseline: ema`, which no step keeps. RLPT: the predictions are judged again,
    by the run's own judge or by the one that --set names.

    rl-think replay out/rlp --set baseline=none num_target_tokens=1 --steps 1,50

    rl-think replay out/rlp --model out/rlp/checkpoint-100 --steps last

    rl-think replay out/rlp-verl/dumps --set baseline=none

    rl-think replay out/rlpt --set reward=strict judge_model=other/judge
    """

    run: tyro.conf.Positional[Path]
    """output_dir of a run that trained with `log_completions: true`; of verl's trainers `rlp` and `rlpt` the
    default_local_dir or the rollout_data_dir."""
    model: str | None = None
    """RLP: folder or hub name of the model that scores; without it the run's start."""
    set: list[str] = field(default_factory=list)
    """Settings of the method by name, over those of the run: --set baseline=live aggregate=mean."""
    steps: str = "all"
    """Which steps: all, first, last, or numbers such as 1,50."""
    output: Path | None = None
    """Folder of replay.json and replay.parquet; without it the next replay-N in the run's rl_think."""
    max_tokens_per_batch: int | None = None
    """RLP: tokens of one forward; lower it when memory runs out."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the model; auto is bfloat16 on a GPU and float32 on a CPU."""
    trust_remote_code: bool = False
    """Run the code that a model's repository brings."""


def run_replay(config: ReplayConfig) -> dict[str, Any]:
    """Score again and compare; writes replay.json and replay.parquet, returns what replay.json holds.

    Raises:
        UserError: a run, model or settings that cannot be used, or rollouts of another tokenizer.
    """
    from rl_think_ext.offline.bench import Bench, Place
    from rl_think_ext.scoring.load import load_tokenizer

    run = Run.of(config.run)
    if run.method == "rlpt":
        from rl_think_ext.offline.replay_predictions import judge_again

        return judge_again(config, run)
    steps, old = run.choose(config.steps), settings_of(run)
    rlp = _settings(config, old, run)
    rows = [{**row, "step": step} for step in steps for row in run.read(step)]
    check_settings(old, rlp, rows)
    name = config.model or run.model
    check_tokens(load_tokenizer(name, trust_remote_code=config.trust_remote_code), name, run, rows)
    start = run.model if rlp.averages else None
    bench = Bench.of(name, rlp, Place(config.device, config.dtype, config.trust_remote_code), start)
    new = score(bench, rows)
    folder = next_folder(run.folder, config.output)
    found = {
        "kind": "replay",
        "run": source_name(str(config.run)),
        "model": source_name(name),
        "start": run.about.get("model"),
        "steps": steps,
        "settings": {"old": old, "new": vars(rlp)},
        **compare(rows, new),
    }
    _write(folder, found, rows, new)
    return {**found, "folder": str(folder)}


def settings_of(run: Run) -> dict[str, Any]:
    """The run's own settings of RLP.

    Raises:
        UserError: run.json holds none.
    """
    found = run.about.get("settings")
    if not isinstance(found, dict):
        raise UserError(f"{run.source} holds no `settings`")
    return found


def _settings(config: ReplayConfig, old: dict[str, Any], run: Run) -> RLPConfig:
    own = {} if config.max_tokens_per_batch is None else {"max_tokens_per_batch": config.max_tokens_per_batch}
    return with_pairs(old, config.set, own, str(run.source))


def check_settings(old: Mapping[str, Any], new: RLPConfig, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what rollouts cannot answer: another way of asking, or more targets than were kept.

    Raises:
        UserError: naming the setting.
    """
    if new.elicit != old.get("elicit", new.elicit):
        raise UserError(
            f"--set elicit={new.elicit}: these thoughts were asked for with elicit {old['elicit']}; "
            "`rl-think gain --set elicit=…` samples new ones"
        )
    most = max((len(row["target_ids"] or ()) for row in rows), default=0)
    if new.num_target_tokens > max(most, int(old.get("num_target_tokens", 1))):
        raise UserError(
            f"--set num_target_tokens={new.num_target_tokens}: the rollouts hold {most} target tokens at most"
        )


def check_tokens(tokenizer: Any, name: str, run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rollouts whose ids are other tokens for this model than for the run.

    Raises:
        UserError: naming an id and what it is in both.
    """
    from rl_think_ext.offline.compare import check_ids
    from rl_think_ext.scoring.load import load_tokenizer

    used = sorted({i for row in rows for column in IDS for i in row[column] or ()})
    if used and used[-1] >= len(tokenizer):
        raise UserError(
            f"the rollouts hold token {used[-1]}, and the tokenizer of {name} has {len(tokenizer)} entries: they were "
            "made with another tokenizer; give a model of the run's own family"
        )
    for place in (str(run.source.parent.parent), run.about.get("model")):
        try:
            own = load_tokenizer(str(place))
        except UserError:
            continue  # a run that was stopped saved none, and its start may lie elsewhere now
        check_ids(own, tokenizer, used, ("the run", name))
        return


def score(bench: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The new numbers of each sample, None where there is none, and `unscorable` with the reason."""
    most = bench.scorer.config.num_target_tokens
    rollouts = [
        bench.rollout(row["prompt_ids"], row["context_ids"], (row["target_ids"] or [])[:most], row["completion_ids"])
        for row in rows
    ]
    gains = bench.scorer(rollouts)
    columns = {name: gains.column(name).tolist() for name in NUMBERS}
    found = []
    for i, scored in enumerate(gains.scores()):
        values = {name: None if column[i] != column[i] else column[i] for name, column in columns.items()}
        found.append({**values, "unscorable": scored.reason})
    return found


def compare(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Old against new: means, paired differences and correlations, and what changed between scorable and not."""
    from rl_think_ext.offline.segments import as_dict

    groups = [(row["step"], tuple(row["prompt_ids"])) for row in old]
    found: dict[str, Any] = {"num_samples": len(old), "num_groups": len(set(groups))}
    for name in NUMBERS:
        before, after = [row.get(name) for row in old], [row[name] for row in new]
        change = [None if a is None or b is None else b - a for a, b in zip(before, after, strict=True)]
        found[name] = {
            "old": as_dict(mean_interval(before, groups)),
            "new": as_dict(mean_interval(after, groups)),
            "difference": as_dict(mean_interval(change, groups)),
            "largest_difference": max((abs(c) for c in change if c is not None), default=None),
            "correlation": _correlation(before, after),
        }
    was, now = [row["unscorable"] for row in old], [row["unscorable"] for row in new]
    found["became_unscorable"] = sum(a is None and b is not None for a, b in zip(was, now, strict=True))
    found["became_scorable"] = sum(a is not None and b is None for a, b in zip(was, now, strict=True))
    for when, reasons in (("old", was), ("new", now)):
        found[f"unscorable_{when}"] = {r: reasons.count(r) for r in dict.fromkeys(reasons) if r is not None}
    return found


def _correlation(before: Sequence[float | None], after: Sequence[float | None]) -> float | None:
    """Pearson's, over the samples that have both; None where one of them does not vary."""
    import numpy as np

    pairs = np.array([(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None])
    if len(pairs) < 2 or not pairs.std(axis=0).all():
        return None
    return float(np.corrcoef(pairs.T)[0, 1])


def _write(
    folder: Path, found: Mapping[str, Any], old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> None:
    import pyarrow as pa

    from rl_think_ext.offline.store import write_table, write_whole

    fields = [("id", pa.string()), ("step", pa.int64()), *((name, pa.list_(pa.int32())) for name in IDS)]
    for name in (*NUMBERS, "unscorable"):
        kind = pa.string() if name == "unscorable" else pa.float64()
        fields += [(name, kind), (f"new_{name}", kind)]
    rows = [
        {**{name: a.get(name) for name, _ in fields}, **{f"new_{name}": value for name, value in b.items()}}
        for a, b in zip(old, new, strict=True)
    ]
    write_table(folder / "replay.parquet", pa.Table.from_pylist(rows, schema=pa.schema(fields)))
    write_whole(folder / "replay.json", (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
