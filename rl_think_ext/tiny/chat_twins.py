"""The published numbers of the chat task: `python -m rl_think_ext.tiny.chat_twins --seeds 0 1 2 --output DIR`.

Runs the recipe of the warm start and that of GRPO for both twins (style think, and none: one key), each run by
`rl-think train` in a process of its own, and measures before and after on held-out requests that chose nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml

from rl_think_ext.errors import UserError
from rl_think_ext.template import Style
from rl_think_ext.tiny.chat_measure import load_policy, load_reward, measure
from rl_think_ext.tiny.chats import requests

RECIPES = Path("recipes/rlmt/tiny")
STYLES: tuple[Style, ...] = ("think", "none")
TEST_SEED, TEST_ROWS = 4242, 1024


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; starts in the repository's root.

    Raises:
        UserError: no recipes here, or a folder that is there already.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="steps of every run, in place of the recipes'; for a look")
    parser.add_argument("--output", type=Path, required=True, help="a new folder for the runs and results.json")
    args = parser.parse_args(argv)
    if not RECIPES.is_dir():
        raise UserError(f"there is no {RECIPES} here; start this in the root of the repository")
    if args.output.exists():
        raise UserError(f"{args.output} is there already; say another --output")
    torch.set_num_threads(1)
    found = {style: twin(style, args.seeds, args.output, args.steps) for style in STYLES}
    (args.output / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))


def twin(style: Style, seeds: Sequence[int], output: Path, steps: int | None = None) -> dict[str, Any]:
    """One twin: base, warm start, and GRPO for every seed, each with what it scores on the test part."""
    base, warm = str(RECIPES / "models/policy"), str(output / f"sft-{style}")
    fewer = {} if steps is None else {"max_steps": str(steps)}
    seconds = [train("sft.yaml", style, warm, **fewer)]
    runs = []
    for seed in seeds:
        folder = str(output / f"grpo-{style}-{seed}")
        seconds.append(train("train.yaml", style, folder, model_name_or_path=warm, seed=str(seed), **fewer))
        runs.append(score(folder, style))
        print(json.dumps({"style": style, "seed": seed, **runs[-1]}), flush=True)
    return {"base": score(base, style), "warm": score(warm, style), "grpo": runs, "seconds": seconds}


def train(recipe: str, style: Style, folder: str, **overrides: str) -> float:
    """Run a recipe with this style by `rl-think train`; returns its seconds, start of the process included."""
    config = yaml.safe_load((RECIPES / recipe).read_text(encoding="utf-8"))
    config["rl_think"]["rlmt"]["style"] = style
    return run(config, folder, **overrides)


def run(config: Mapping[str, Any], folder: str, **overrides: str) -> float:
    """`rl-think train` in a process of its own, with one thread; returns its seconds."""
    Path(folder).mkdir(parents=True)
    path = Path(folder).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "rl_think_ext.cli.train", "--config", str(path), "--output_dir", folder]
    for key, value in overrides.items():
        command += [f"--{key}", value]
    started = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - started, 1)


def score(folder: str, style: Style) -> dict[str, float]:
    """`measure` of a policy on the test part."""
    reward = load_reward(str(RECIPES / "models/reward"))
    found = measure(load_policy(folder), reward, requests("test", TEST_SEED, TEST_ROWS), style, seed=TEST_SEED)
    return {name: round(value, 4) for name, value in found.items()}


def table(found: Mapping[Style, Mapping[str, Any]]) -> str:
    """The results as a Markdown table: mean and spread over the seeds."""
    names = ("score", "exact", "kept", "ok", "thought")
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for style, result in found.items():
        lines += [
            f"| {style}: {stage} | " + " | ".join(f"{result[stage][name]:.3f}" for name in names) + " |"
            for stage in ("base", "warm")
        ]
        runs = [[run[name] for run in result["grpo"]] for name in names]
        cells = [f"{mean(values):.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}" for values in runs]
        lines.append(f"| {style}: GRPO | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
