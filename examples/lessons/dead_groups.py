"""Random cuts starve RLP, and `rl-think gain --select` feeds it again.

    python examples/lessons/dead_groups.py --seeds 0 1 2

Three quarters of the contexts are cut at a random token instead of before the answer. No thought helps there, but
some harm less than others: most of a batch rewards differences of harm, which drown the rest. `--select` measures the
base once, and keeps the positions where some thoughts help and some do not. Same base, settings and number of steps
for both runs.
"""

from pathlib import Path
from typing import Any

import tyro
from datasets import Dataset, load_dataset
from miniature import base, finish, held_out, learn

from rl_think_ext import cli
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.programs import random_cuts, rl_rows


def main(
    seeds: list[int] = [0],  # noqa: B006
    steps: int = 100,
    num_rows: int = 4000,
    num_thoughts: int = 8,
    share: float = 0.75,
) -> None:
    """Train on random cuts and on the selected ones, and compare on held-out answers."""
    result: dict[str, Any] = {"before": held_out(base())}
    for seed in seeds:
        cuts, chosen = Path(f"out/lessons/cuts-{seed}.parquet"), Path(f"out/lessons/selected-{seed}")
        rows = random_cuts(rl_rows(seed, num_rows), share, seed)
        cuts.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(cuts)
        # The gains of the thoughts of the base: what the reward would be in the first step.
        words = [
            "gain",
            "--model",
            str(PROGRAMS_MODEL),
            "--data",
            str(cuts),
            "--output",
            f"out/lessons/gain-{seed}",
        ]
        words += ["--num-thoughts", str(num_thoughts), "--max-thought-tokens", "20", "--select", str(chosen)]
        if cli.main([*words, "--overwrite"]):
            raise SystemExit(1)
        selected = load_dataset(str(chosen))["train"]
        answers = selected["cut"].count("answer") / len(selected)
        print(f"seed {seed}: kept {len(selected)} of {num_rows} positions, {answers:.0%} of them before an answer")
        result[f"seed {seed}"] = {"kept": len(selected), "before an answer": answers}
        for name, data in (("random cuts", rows), ("selected", selected)):
            run = learn(data, f"{name}-{seed}".replace(" ", "-"), seed=seed, max_steps=steps)
            after = held_out(run.model)
            result[f"seed {seed}"][name] = after
            print(f"seed {seed}, {name:<11}: gain {after['gain']:+.2f} nats, accuracy {after['accuracy']:.2f}")
    finish("dead_groups", result)


if __name__ == "__main__":
    tyro.cli(main)
