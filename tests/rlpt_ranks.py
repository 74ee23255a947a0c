"""One rank of test_trl_rlpt.py's runs of two: torchrun --nproc_per_node 2 tests/rlpt_ranks.py OUT POLICY SERVER."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from datasets import Dataset
from test_trl_rlpt import TINY, Scripted, row, said

from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.trl import RLPTGRPOConfig

RANK = int(os.environ.get("RANK", "0"))


class Ranked(Scripted):
    said = (said("It rained on the hill."), said(f"I am of RANK{RANK}, and it rained."))
    advantages: list[float]

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.advantages = output["advantages"].tolist()
        return output


def run(folder: Path, policy: str, rlpt: RLPTConfig, **settings: object) -> None:
    args = RLPTGRPOConfig(str(folder), **{**TINY, "shuffle_dataset": False, **settings})
    rows = Dataset.from_list([row(0), row(1, "msr")])
    trainer = Ranked(policy, args, rlpt=rlpt, train_dataset=rows)
    trainer.train()
    reward = trainer.prediction
    found = {
        "names": [sorted(name for name in entry if name.startswith("rlpt/")) for entry in trainer.state.log_history],
        "paid": reward.paid,
        "advantages": trainer.advantages,
        "tasks": reward.tasks(),
        "slots": getattr(getattr(reward.scorer.judge, "endpoint", None), "num_at_once", None),
    }
    (folder / f"rank{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    out, policy, server = sys.argv[1:]
    served = RLPTConfig(server=server, judge_model="judge", retries=0, num_canaries=0, max_concurrency=8)
    run(Path(out) / "one", policy, served, num_generations=8)
    run(Path(out) / "two", policy, RLPTConfig(judge="rule", msr_weight=0.5), scale_rewards="none")
