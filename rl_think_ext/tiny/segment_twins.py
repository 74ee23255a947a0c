"""The published numbers of RLPT's task: `python -m rl_think_ext.tiny.segment_twins --seeds 0 1 2 --output DIR`.

Runs the recipe with the prefix reward and with the strict one, each by `rl-think train` in a process of its own, then
both controls for as many CPU seconds, and measures on held-out programs that chose nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

import torch
import yaml

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import Reward
from rl_think_ext.tiny.chat_twins import run
from rl_think_ext.tiny.segment_controls import CONTROLS, train_control
from rl_think_ext.tiny.segment_data import documents_of_training
from rl_think_ext.tiny.segment_measure import measure
from rl_think_ext.tiny.segment_training import Loaded, load_policy

RECIPES = Path("recipes/rlpt/tiny")
POLICY = str(RECIPES / "models/policy")
REWARDS: tuple[Reward, ...] = get_args(Reward)
RUNS = (*REWARDS, *CONTROLS)
TEST_SEED, TEST_ROWS = 20261122, 512
SHOWN = (
    "asr/prefix", "asr/strict", "asr/segments", "asr/prediction",
    "msr/prefix", "msr/strict", "msr/segments", "msr/prediction",
)  # fmt: skip

Runs = dict[str, list[dict[str, float]]]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; starts in the repository's root.

    Raises:
        UserError: no recipes here, or a folder that is there already.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="which; all of them")
    parser.add_argument("--seconds", type=float, help="CPU seconds of a control, in place of what RLPT took")
    parser.add_argument("--steps", type=int, help="steps of every run, in place of the recipe's; for a look")
    parser.add_argument("--test-rows", type=int, default=TEST_ROWS, help="held-out positions for each task")
    parser.add_argument("--output", type=Path, required=True, help="a new folder for the runs and results.json")
    args = parser.parse_args(argv)
    if not RECIPES.is_dir():
        raise UserError(f"there is no {RECIPES} here; start this in the root of the repository")
    if args.output.exists():
        raise UserError(f"{args.output} is there already; say another --output")
    torch.set_num_threads(1)
    args.output.mkdir(parents=True)
    found: Runs = {"before": [score(load_policy(POLICY), args.test_rows)]}
    for seed in args.seeds:
        for reward in (kind for kind in REWARDS if kind in args.runs):
            folder = str(args.output / f"{reward}-{seed}")
            seconds = trained(reward, folder, seed, args.steps)
            add(found, reward, seed, score(load_policy(folder), args.test_rows), seconds)
    for seed in args.seeds:
        for kind in (kind for kind in CONTROLS if kind in args.runs):
            policy, budget = load_policy(POLICY), args.seconds or taken(found)
            steps = train_control(kind, policy, documents_of_training(), seconds=budget, seed=seed)
            add(found, kind, seed, {**score(policy, args.test_rows), "steps": float(steps)}, budget)
    (args.output / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))


def taken(found: Runs) -> float:
    """The CPU seconds of a run of RLPT, on average.

    Raises:
        UserError: there was none.
    """
    seconds = [row["seconds"] for reward in REWARDS for row in found.get(reward, ())]
    if not seconds:
        raise UserError("without a run of RLPT say how long the controls may train: --seconds N")
    return mean(seconds)


def trained(reward: Reward, folder: str, seed: int, steps: int | None) -> float:
    """The recipe with this reward; returns the CPU seconds of its training, the start of the process left out."""
    config = yaml.safe_load((RECIPES / "train.yaml").read_text(encoding="utf-8"))
    config["rl_think"]["rlpt"]["reward"] = reward
    fewer = {} if steps is None else {"max_steps": str(steps)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    wall = run(config, folder, seed=str(seed), **fewer)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    lines = (Path(folder) / "rl_think/log.jsonl").read_text(encoding="utf-8").splitlines()
    training = next(line["train_runtime"] for line in map(json.loads, lines) if "train_runtime" in line)
    return float(used * training / wall)


def score(policy: Loaded, rows: int) -> dict[str, float]:
    """`measure` of a policy on the test part."""
    return {name: round(value, 4) for name, value in measure(policy, "test", TEST_SEED, rows).items()}


def add(found: Runs, name: str, seed: int, scores: Mapping[str, float], seconds: float) -> None:
    """Keep a run, and say it."""
    row = {"seed": float(seed), "seconds": round(seconds, 1), **scores}
    found.setdefault(name, []).append(row)
    print(json.dumps({"run": name, **row}), flush=True)


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The results as a Markdown table: mean and spread over the seeds."""
    lines = ["| | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for name, runs in found.items():
        cells = []
        for shown in SHOWN:
            values = [row[shown] for row in runs]
            cells.append(f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
