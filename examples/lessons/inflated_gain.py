"""Gain without thinking: a learning rate that breaks the no-think path makes every thought look good beside it.

    python examples/lessons/inflated_gain.py

Read `rlp/gain_frozen` and `rlp/accuracy`, not `rlp/gain` alone; an alarm says so while the run goes on.
"""

import tyro
from miniature import finish, held_out, learn

from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.tiny.programs import rl_rows

SHOWN = ("rlp/gain", "rlp/gain_frozen", "rlp/logprob_baseline", "rlp/accuracy")


def main(steps: int = 30, learning_rate: float = 8e-3) -> None:
    """Train against the live baseline with sixteen times the demo's learning rate."""
    run = learn(
        rl_rows(0, 20_000),
        "inflated",
        rlp=RLPConfig(baseline="live"),
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
    )
    for log in run.history:
        print(f"step {log['step']:3d}  " + "  ".join(f"{key} {log[key]:+7.2f}" for key in SHOWN))
    for text in run.alarms:
        print(f"ALARM {text}")
    after = held_out(run.model)
    print(f"held out: gain against the frozen start {after['gain']:+.2f} nats, accuracy {after['accuracy']:.2f}")
    logs = [{key: log[key] for key in ("step", *SHOWN)} for log in run.history]
    finish("inflated_gain", {"logs": logs, "alarms": run.alarms, "held out": after})


if __name__ == "__main__":
    tyro.cli(main)
