"""How well a policy does RLPT's miniature task: `python -m rl_think_ext.tiny.segment_measure MODEL`.

Outputs are sampled on held-out programs. What they are worth says `segments.checked`, which knows the program; the
judge of the training and its references are not asked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch

from rl_think_ext.methods.rlpt import TASKS, Task, extract_prediction
from rl_think_ext.tiny.chat_measure import complete, means
from rl_think_ext.tiny.programs import Part
from rl_think_ext.tiny.segment_training import Loaded, frame, load_policy
from rl_think_ext.tiny.segments import checked, positions, prompt

MAX_COMPLETION = 48


def sample(
    policy: Loaded,
    prompts: Sequence[str],
    *,
    seed: int,
    temperature: float = 1.0,
    max_new_tokens: int = MAX_COMPLETION,
) -> list[str]:
    """One sampled output for each prompt; the global seed is left alone."""
    texts = [frame(policy[1], asked) for asked in prompts]
    found = complete(*policy, texts, seed=seed, temperature=temperature, max_new_tokens=max_new_tokens)
    return [text for text, _ in found]


def measure(
    policy: Loaded, part: Part, seed: int, n: int, *, temperature: float = 1.0, tasks: Sequence[Task] = TASKS
) -> dict[str, float]:
    """Means over `n` positions a task.

    Returns:
        By task (`asr/prefix`): `prefix`, `strict` and `results` of `segments.checked`; `ok`, the share of outputs with
        both tags; `segments`, how many of the reference's are as long as the prediction; `prediction`, its words;
        `worked`, the share of outputs in which the worked steps stand, all right.
    """
    found = {}
    was_training = policy[0].training
    policy[0].eval()
    for task in tasks:
        drawn = list(positions(part, seed, n, task))
        said = sample(policy, [prompt(segment) for _, _, segment in drawn], seed=seed, temperature=temperature)
        predicted = [extract_prediction(text) for text in said]
        rows = [
            {
                **checked(document, target, text),
                "ok": float(text is not None),
                "segments": segment.reference.num_covered(text) if text is not None else float("nan"),
                "prediction": float(len(text.split())) if text is not None else float("nan"),
                "worked": float(document.program.gold in whole),
            }
            for (document, target, segment), text, whole in zip(drawn, predicted, said, strict=True)
        ]
        for name, value in means({name: [row[name] for row in rows] for name in rows[0]}).items():
            found[f"{task}/{name}"] = value
    policy[0].train(was_training)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of policies")
    parser.add_argument("--part", choices=["dev", "test"], default="dev")
    parser.add_argument("--seed", type=int, default=0, help="of the documents and of the sampling")
    parser.add_argument("--rows", type=int, default=512, help="positions for each task")
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for path in args.models:
        found = measure(load_policy(path), args.part, args.seed, args.rows, temperature=args.temperature)
        print(json.dumps({"model": path, **{name: round(value, 4) for name, value in found.items()}}))


if __name__ == "__main__":
    main()
