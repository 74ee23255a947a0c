"""Make the policy of RLPT's miniature task: `python -m rl_think_ext.tiny.segment_models --seed N --output DIR`.

DIR/policy has read arithmetic, plain texts and chats by a mediocre writer, from random weights, in some minutes on one
core; `made.json` says how it came to be. Nothing here looks at the test part.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rl_think_ext.errors import UserError
from rl_think_ext.tiny.chat_models import save, versions
from rl_think_ext.tiny.segment_measure import measure
from rl_think_ext.tiny.segment_training import make_policy


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Raises:
        UserError: a policy that is there already, without --overwrite.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for policy/ and made.json")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the texts")
    parser.add_argument("--steps", type=int, default=2000, help="of 32 texts each")
    parser.add_argument("--dev-rows", type=int, default=512, help="held-out positions a task, for the record")
    parser.add_argument("--overwrite", action="store_true", help="write over the policy that is there")
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given)
    if (args.output / "made.json").exists() and not args.overwrite:
        raise UserError(f"{args.output} holds a policy already; say another --output, or --overwrite to lose it")
    torch.set_num_threads(1)  # more threads are slower at this size, and change the last bits
    started = time.monotonic()
    policy, final_loss = make_policy(args.seed, args.steps)
    record = {
        "command": shlex.join(["python", "-m", "rl_think_ext.tiny.segment_models", *given]),
        "seed": args.seed,
        "steps": args.steps,
        "parameters": policy[0].num_parameters(),
        "seconds": round(time.monotonic() - started, 1),
        "machine": platform.machine(),
        "final_loss": round(final_loss, 4),
        "dev": {name: round(value, 4) for name, value in measure(policy, "dev", 0, args.dev_rows).items()},
        "versions": versions(),
        "sha256": save(policy, args.output / "policy"),
    }
    text = json.dumps(record, indent=2)
    (args.output / "made.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
