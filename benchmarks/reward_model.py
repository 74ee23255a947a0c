"""What scoring answers with a reward model costs: python benchmarks/reward_model.py [--prompts FILE ...]

Three ways to score the samples of one rollout (8 prompts, 8 samples each, one sample in 16 a copy of another one of
its group) with one sequence-classification Qwen3 from config, on a CPU, in one process and interleaved:

  ours    rl_think_ext.scoring.reward_model.LocalRewardModel as it comes: equal inputs once, micro-batches sorted by
          length and bounded in tokens, and the share scored again to measure noise; an empty cache at every start
  padded  the RLMT authors' way: micro-batches of one, every input padded to 5,120 tokens
  one     TRL's way: all rows padded to the longest, in one forward, in inference mode

Lengths of prompts are those of the WildChat-IF prompts at 4 characters a token: read from parquet files with a column
`prompt` of messages, or drawn from a log-normal distribution fitted to these 7,794 prompts (mean 4.52, deviation 1.30
of the logarithm). Answers are log-normal with a median of 400 tokens (deviation 0.7). Prompts end at 1,024 tokens and
answers at 4,096, as in the recipe; 5,120 is their sum. All of these lengths and the bound of a micro-batch are divided
by `--scale` (4), for a CPU: attention, quadratic in the length, makes the padded way look better by it.

Printed and written as JSON: medians of seconds, the medians of the paired ratios to ours, the largest difference of a
score, and the peak memory of each way above the loaded model, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForSequenceClassification

from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.reward_forward import RewardForward
from rl_think_ext.scoring.reward_input import RewardInput
from rl_think_ext.scoring.reward_model import LocalRewardModel

VOCAB, PAD = 151_936, 151_643
PROMPTS, SAMPLES, COPIES = 8, 8, 1 / 16
PROMPT_LOG, ANSWER_LOG = (4.522, 1.302), (5.99, 0.7)
MOST_PROMPT, MOST_ANSWER, MOST_TOKENS = 1024, 4096, 16384
CHARACTERS = 4  # of a token
WAYS = ("ours", "padded", "one")
Rows = list[tuple[int, ...]]
Way = Callable[[], list[float]]


def network() -> Qwen3ForSequenceClassification:
    """About 31 M random weights, 29 M of them in the embedding, in float32 and eval mode."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=MOST_PROMPT + MOST_ANSWER,
        num_labels=1,
        pad_token_id=PAD,
    )
    return Qwen3ForSequenceClassification(config).eval().requires_grad_(False)


def prompt_lengths(files: Sequence[Path], generator: random.Random) -> list[int]:
    """Tokens of each prompt of a rollout; what is too long is left out, as the recipe does."""
    if files:
        import pyarrow.parquet as pq

        rows = [row for file in files for row in pq.read_table(file, columns=["prompt"])["prompt"].to_pylist()]
        known = [sum(len(message["content"]) for message in row) // CHARACTERS for row in rows]
    else:
        known = [int(generator.lognormvariate(*PROMPT_LOG)) for _ in range(1000)]
    return generator.sample([max(1, length) for length in known if length <= MOST_PROMPT], PROMPTS)


def rollout(lengths: Sequence[int], scale: int, generator: random.Random) -> Rows:
    """Ids of prompt and answer of every sample."""
    rows: Rows = []
    for length in lengths:
        prompt = draw(length // scale, generator)
        group: Rows = []
        for _ in range(SAMPLES):
            answer = min(MOST_ANSWER, int(generator.lognormvariate(*ANSWER_LOG)))
            copied = group and generator.random() < COPIES
            group.append(generator.choice(group) if copied else prompt + draw(answer // scale, generator))
        rows += group
    return rows


def draw(length: int, generator: random.Random) -> tuple[int, ...]:
    """Ids of ordinary tokens, at least one."""
    return tuple(generator.choices(range(PAD), k=max(1, length)))


class Ids:
    """In place of the template: a conversation is the number of its row. No way's time holds any tokenizing."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def encode(self, conversation: int) -> RewardInput:
        return RewardInput(self.rows[conversation], 0)


def ways(model: Qwen3ForSequenceClassification, rows: Rows, scale: int) -> dict[str, Way]:
    """Each way as a function that returns the scores."""
    width = (MOST_PROMPT + MOST_ANSWER) // scale

    def padded_to(batch: Rows, length: int) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row + (PAD,) * (length - len(row)) for row in batch])
        return {"input_ids": ids, "attention_mask": (ids != PAD).long()}

    def ours() -> list[float]:
        config = RLMTConfig(max_tokens_per_batch=MOST_TOKENS // scale, cache_size=0)
        local = LocalRewardModel(config, "cpu")
        local.template = Ids(rows)
        local.forward = RewardForward(model, max_tokens=config.max_tokens_per_batch)
        return [score.value for score in local(range(len(rows)))]

    @torch.no_grad()
    def padded() -> list[float]:
        return [model(**padded_to([row], width)).logits[0, 0].item() for row in rows]

    @torch.inference_mode()
    def one() -> list[float]:
        return model(**padded_to(rows, max(map(len, rows)))).logits[:, 0].tolist()

    return {"ours": ours, "padded": padded, "one": one}


def measure(functions: dict[str, Way], rounds: int) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Scores and seconds of each way: interleaved, each round beginning with another way, after one warm-up."""
    scores = {name: torch.tensor(function()) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    for i in range(rounds):
        at = i % len(order)
        for name in order[at:] + order[:at]:
            start = time.perf_counter()
            functions[name]()
            times[name].append(time.perf_counter() - start)
    return scores, times


def make(given: argparse.Namespace) -> tuple[dict[str, Way], Rows]:
    generator = random.Random(given.seed)
    rows = rollout(prompt_lengths(given.prompts, generator), given.scale, generator)
    return ways(network(), rows, given.scale), rows


def peak_mib(way: str, argv: Sequence[str]) -> float:
    """Peak memory above the loaded model, measured in a process of its own."""
    command = [sys.executable, __file__, *argv, "--peak-of", way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_peak(given: argparse.Namespace) -> None:
    """The other end of `peak_mib`."""
    function = make(given)[0][given.peak_of]
    # ru_maxrss is inherited from the parent and holds the loading of the model: reset the high-water mark instead.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_kib("VmRSS")
    function()
    print((memory_kib("VmHWM") - before) / 1024)


def memory_kib(name: str) -> int:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def run(given: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure, print and write."""
    peaks = {way: peak_mib(way, argv) for way in WAYS}
    functions, rows = make(given)
    scores, times = measure(functions, given.rounds)
    tokens, longest, unique = sum(map(len, rows)), max(map(len, rows)), len(set(rows))
    record = {
        "scale": given.scale,
        "lengths": [str(file.name) for file in given.prompts] or "log-normal fit",
        "rows": len(rows),
        "different_rows": unique,
        "tokens": tokens,
        "longest": longest,
        "padded_tokens": {
            "padded": len(rows) * (MOST_PROMPT + MOST_ANSWER) // given.scale,
            "one": len(rows) * longest,
        },
        "seconds": {way: statistics.median(times[way]) for way in WAYS},
        "times_ours": {
            way: statistics.median(a / b for a, b in zip(times[way], times["ours"], strict=True)) for way in WAYS
        },
        "rounds": times,
        "peak_mib": peaks,
        "largest_difference": {way: (scores[way] - scores["ours"]).abs().max().item() for way in WAYS},
        "spread_of_scores": scores["ours"].std().item(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    print(f"{len(rows)} rows, {unique} of them different, {tokens} tokens, the longest {longest}")
    for way in WAYS:
        print(
            f"{way:<7} {record['seconds'][way]:8.3f} s  {record['times_ours'][way]:6.2f} x ours  "
            f"{peaks[way]:7.0f} MiB above the model  differs by {record['largest_difference'][way]:.1e}"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "reward_model.json"
    file.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {file}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, nargs="*", default=[], help="parquet files")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--scale", type=int, default=4, help="what lengths are divided by (4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse(sys.argv[1:])
    if arguments.peak_of:
        measure_peak(arguments)
    else:
        run(arguments, sys.argv[1:])
