"""The opening tag leaks into the baseline: the same policy, to the bit, reports a gain that cannot exist.

    python examples/lessons/tag_leak.py

The base puts most of its mass on `<think>` behind a question, so the log-prob of the answer without a thought looks
worse than it is. ln 10 = 2.30 nats is the most a thought can gain on one digit.
"""

import math

import torch
import tyro
from miniature import finish, learn

from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.tiny.programs import rl_rows


def main(steps: int = 100) -> None:
    """Train twice, with and without the tag masked in the baseline."""
    result, policies = {"ceiling": math.log(10)}, []
    for name, masked in (("masked", True), ("not masked", False)):
        rlp = RLPConfig(baseline_mask_open_tag=masked)
        run = learn(rl_rows(0, 20_000), f"tag-{name.replace(' ', '-')}", rlp=rlp, max_steps=steps)
        policies.append(run.model.state_dict())
        result[name] = {key: run.history[-1][key] for key in ("rlp/gain", "rlp/logprob_baseline", "rlp/accuracy")}
        values = "  ".join(f"{key} {value:+.2f}" for key, value in result[name].items())
        print(f"opening tag {name:<10}  {values}")
    result["same policy"] = all(torch.equal(policies[0][key], policies[1][key]) for key in policies[0])
    print(f"ceiling {math.log(10):.2f} nats; the two policies are equal to the bit: {result['same policy']}")
    finish("tag_leak", result)


if __name__ == "__main__":
    tyro.cli(main)
