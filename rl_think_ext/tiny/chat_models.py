"""Make the models of the chat task from scratch: `python -m rl_think_ext.tiny.chat_models --seed N --output DIR`.

DIR/policy is a chat model that mostly answers badly, with or without a thought; DIR/reward is a reward model that is
trained on preference pairs (Bradley-Terry) and never sees a thought. Each takes some three minutes on one core.
`made.json` says how they came to be. Nothing here looks at the test part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
import transformers

from rl_think_ext.errors import UserError
from rl_think_ext.tiny.chat_examples import pairs
from rl_think_ext.tiny.chat_measure import Loaded, correlation, measure, pair_accuracy
from rl_think_ext.tiny.chat_training import make_policy, make_reward
from rl_think_ext.tiny.chats import requests


def save(made: Loaded, folder: Path) -> dict[str, str]:
    """Model and tokenizer; returns the hashes of what was written."""
    for part in made:
        part.save_pretrained(folder)
    names = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")
    paths = [folder / name for name in names if (folder / name).exists()]
    return {f"{folder.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Raises:
        UserError: models that are there already, without --overwrite.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for policy/, reward/ and made.json")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the examples")
    parser.add_argument("--policy-steps", type=int, default=2000, help="of 32 completions each")
    parser.add_argument("--read-steps", type=int, default=1500, help="of 32 right answers each, for the reward model")
    parser.add_argument("--judge-steps", type=int, default=1500, help="of 32 pairs each")
    parser.add_argument("--dev-rows", type=int, default=512, help="held-out requests for the record")
    parser.add_argument("--overwrite", action="store_true", help="write over the models that are there")
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given)
    if (args.output / "made.json").exists() and not args.overwrite:
        raise UserError(f"{args.output} holds models already; say another --output, or --overwrite to lose them")
    torch.set_num_threads(1)  # more threads are slower at this size, and change the last bits
    started = time.monotonic()
    policy, policy_loss_last = make_policy(args.seed, args.policy_steps)
    between = time.monotonic()
    reward, reward_loss_last = make_reward(args.seed, args.read_steps, args.judge_steps)
    ended = time.monotonic()
    record = {
        "command": shlex.join(["python", "-m", "rl_think_ext.tiny.chat_models", *given]),
        "seed": args.seed,
        "parameters": {"policy": policy[0].num_parameters(), "reward": reward[0].num_parameters()},
        "seconds": {"policy": round(between - started, 1), "reward": round(ended - between, 1)},
        "final_loss": {"policy": round(policy_loss_last, 4), "reward": round(reward_loss_last, 4)},
        "dev": dev_metrics(policy, reward, args.dev_rows),
        "versions": versions(),
        "sha256": {**save(policy, args.output / "policy"), **save(reward, args.output / "reward")},
    }
    text = json.dumps(record, indent=2)
    (args.output / "made.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def dev_metrics(policy: Loaded, reward: Loaded, rows: int) -> dict[str, float]:
    """The reward model's accuracy on pairs and its correlation with the truth; the policy in both styles."""
    judged = list(pairs("dev", 0, 2 * rows))
    found = {"pair_accuracy": pair_accuracy(reward, judged)}
    found["correlation"] = correlation(reward, [(request, answer) for request, *two in judged for answer in two])
    for style in ("think", "none"):
        for name, value in measure(policy, reward, requests("dev", 0, rows), style).items():
            found[f"{style}/{name}"] = value
    return {name: round(value, 4) for name, value in found.items()}


def versions() -> dict[str, str]:
    """What made the models."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


if __name__ == "__main__":
    main()
