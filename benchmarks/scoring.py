"""What scoring costs beyond what it must: python benchmarks/scoring.py [--out FOLDER]

Three ways to score K targets behind each of N sequences, with a 100 M-parameter Qwen3 from config and a vocabulary of
151,936, on the same left-padded batches, in one process and interleaved:

  ours   rl_think_ext.scoring.likelihood.Likelihood
  floor  the trunk and the head on the target rows only; no softmax, no checks
  full   logits at every position, log-softmax, gather

Printed and written as JSON: medians of seconds, the median of the paired ratios to the floor, and the peak memory of
each way above the loaded model, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rl_think_ext.scoring.likelihood import Likelihood, Query

VOCAB = 151_936
ROWS, LENGTH = 8, 256
WAYS = ("ours", "floor", "full")


def model_100m() -> Qwen3ForCausalLM:
    """About 105 M parameters, 78 M of them in the tied embedding."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


def queries(num_targets: int) -> list[Query]:
    """Rows of slightly different lengths, so that there is padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator).tolist()
    rows = [tuple(row[8 * (i % 4) :]) for i, row in enumerate(ids)]
    return [Query(row[:-num_targets], row[-num_targets:]) for row in rows]


def batch(rows: list[Query]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same packing as ours: ids, mask and position ids, the last target not read."""
    longest = max(len(q.prefix) + len(q.target) for q in rows) - 1
    ids, seen = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, query in enumerate(rows):
        row = query.prefix + query.target[:-1]
        ids[i, longest - len(row) :], seen[i, longest - len(row) :] = torch.tensor(row), 1
    return ids, seen, (seen.cumsum(-1) - 1).clamp(min=0)


def ways(model: Qwen3ForCausalLM, num_targets: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Each way as a function without arguments that returns log-probs (the floor: logits)."""
    rows = queries(num_targets)
    scorer = Likelihood(model, pad_id=0, max_tokens=ROWS * LENGTH)
    ids, seen, positions = batch(rows)
    labels = torch.tensor([q.target for q in rows])
    inputs = {"input_ids": ids, "attention_mask": seen, "position_ids": positions, "use_cache": False}

    @torch.no_grad()
    def floor() -> torch.Tensor:
        hidden = model.model(**inputs).last_hidden_state[:, -num_targets:]
        return model.lm_head(hidden)

    @torch.no_grad()
    def full() -> torch.Tensor:
        logprob = model(**inputs).logits.float().log_softmax(-1)[:, -num_targets:]
        return logprob.gather(-1, labels[..., None])[..., 0]

    return {"ours": lambda: scorer(rows)[0], "floor": floor, "full": full}


def seconds(functions: dict[str, Callable[[], torch.Tensor]], repeats: int) -> dict[str, list[float]]:
    """Interleaved, after one warm-up each."""
    for function in functions.values():
        function()
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            found[name].append(time.perf_counter() - start)
    return found


def peak_mib(way: str, num_targets: int) -> float:
    """Peak memory above the loaded model, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", way, "--targets", str(num_targets)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_peak(way: str, num_targets: int) -> None:
    """The other end of `peak_mib`."""
    function = ways(model_100m(), num_targets)[way]
    # ru_maxrss is inherited from the parent and holds the loading of the model: reset the high-water mark instead.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_kib("VmRSS")
    function()
    print((memory_kib("VmHWM") - before) / 1024)


def memory_kib(name: str) -> int:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def run(out: Path, repeats: int) -> None:
    """Measure, print and write."""
    model = model_100m()
    results = []
    for num_targets in (1, 32):
        functions = ways(model, num_targets)
        difference = (functions["ours"]() - functions["full"]()).abs().max().item()
        times = seconds(functions, repeats)
        ratios = {
            way: statistics.median(a / b for a, b in zip(times[way], times["floor"], strict=True)) for way in WAYS
        }
        row = {
            "targets": num_targets,
            "seconds": {way: statistics.median(times[way]) for way in WAYS},
            "ratio_to_floor": ratios,
            "peak_mib": {way: peak_mib(way, num_targets) for way in WAYS},
            "largest_difference_to_full": difference,
        }
        results.append(row)
        for way in WAYS:
            print(
                f"K={num_targets:<3} {way:<6} {row['seconds'][way]:7.3f} s  {ratios[way]:5.2f} x floor  "
                f"{row['peak_mib'][way]:7.0f} MiB above the model"
            )
    about = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": ROWS,
        "length": LENGTH,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "scoring.json").write_text(json.dumps({**about, "results": results}, indent=2) + "\n")
    print(f"written to {out / 'scoring.json'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--targets", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak_of:
        measure_peak(given.peak_of, given.targets)
    else:
        run(given.out, given.repeats)
