"""Masked log-probability on a GPU: python benchmarks/logprob_cuda.py [--only 'logits.*'] [--runs 5] [--out FOLDER]

What is timed, for N rows of a vocabulary of 32,000 and 151,936, in bf16 and fp32, every row, half and 5 % wanted:
  logits  rl_think_ext.kernels.masked_logprob from logits, forward and forward with backward
  fused   linear_masked_logprob from hidden states of 2,048 and 4,096
against torch (log_softmax + gather, F.cross_entropy, logsumexp, torch.compile), TRL's Triton selective_log_softmax and
chunked head, Liger and CCE where they are installed (pip install trl liger-kernel cut-cross-entropy; the versions are
printed and stored, for a ratio means nothing without them).

How:
  turns   in each round every way has its turn; the median of a run's rounds stands for the run; all runs are reported
  clock   CUDA events around the call. Before it 512 MiB are written, so that no logits are left in the L2 cache, and
          the host is some launches ahead, as in training
  floor   copy bandwidth and matmul rate are measured here, in the same run. From logits the floor is what must be read
          (and, backward, written) at the copy bandwidth; fused, the products of the wanted rows at the matmul rate of
          that dtype: one forward, three with backward. "of floor" is floor / time, 1.0 being perfect
  error   largest |logprob - float64| / (1 + |float64|) over the first wanted rows
  memory  peak above the inputs, of one call, in MiB

A peer that fails or runs out of memory is reported as that. Without a GPU: exit status 2.

Memory errors and races: compute-sanitizer, which comes with the CUDA toolkit, over the tests (a debug build by
CUDAFLAGS=-lineinfo names the lines):
  compute-sanitizer --tool memcheck  --error-exitcode 1 python -m pytest -q tests/gpu -k 'not 2_31 and not memory'
  compute-sanitizer --tool racecheck --error-exitcode 1 python -m pytest -q tests/gpu -k 'grid and 4097'
  compute-sanitizer --tool synccheck --error-exitcode 1 python -m pytest -q tests/gpu -k 'grid and 4097'
  compute-sanitizer --tool initcheck python -m pytest -q tests/gpu -k 'misaligned'
(with PYTORCH_NO_CUDA_MEMORY_CACHING=1, or torch's cache hides an access beyond the end of a tensor).

Examples:
  python benchmarks/logprob_cuda.py --quick              a smoke of two minutes; its numbers mean little
  python benchmarks/logprob_cuda.py --only 'logits.*'    one half
  python benchmarks/logprob_cuda.py --only '*.bf16.152k*' --runs 5 --out out/gpu
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from logprob_cuda_peers import DTYPES, Data, Way, draw, versions, ways
from rich.console import Console
from rich.table import Table
from torch import Tensor

VOCABS = {"32k": 32_000, "152k": 151_936}
DEPTHS = (2048, 4096)
FLUSH_BYTES = 2**29
CHECKED_ROWS = 64


@dataclass(frozen=True)
class Case:
    """One table: a kind, a dtype, a vocabulary, and for the fused kind a depth."""

    name: str
    fused: bool
    dtype: str
    vocab: int
    depth: int


def cases() -> Iterator[Case]:
    """All, in the order of the report."""
    for dtype in DTYPES:
        for label, vocab in VOCABS.items():
            yield Case(f"logits.{dtype}.{label}", False, dtype, vocab, 0)
            for depth in DEPTHS:
                yield Case(f"fused.{dtype}.{label}.d{depth}", True, dtype, vocab, depth)


def milliseconds(call: Callable[[], object], flush: Tensor) -> float:
    """One call, by events, with a cold L2 cache."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def rates(flush: Tensor) -> dict[str, float]:
    """Copy bandwidth (read + written) and matmul rates of this GPU, now."""
    pair = torch.zeros(2, 2**31, dtype=torch.uint8, device="cuda")
    found = {"copy_bytes_per_s": pair.numel() / _best(lambda: pair[0].copy_(pair[1]), flush)}
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(8192, 8192, dtype=dtype, device="cuda") for _ in range(2))
        found[f"{name}_flop_per_s"] = 2 * 8192**3 / _best(lambda a=a, b=b: a @ b.t(), flush)
    return found


def _best(call: Callable[[], object], flush: Tensor) -> float:
    """Seconds, median of 10 after 3."""
    return statistics.median([milliseconds(call, flush) for _ in range(13)][3:]) / 1000


def floor_seconds(case: Case, num_rows: int, density: float, backward: bool, rate: dict[str, float]) -> float:
    """What cannot be beaten: see the top of this file."""
    wanted = max(1, round(density * num_rows))
    if case.fused:
        return 2 * wanted * case.vocab * case.depth * (3 if backward else 1) / rate[f"{case.dtype}_flop_per_s"]
    item = DTYPES[case.dtype].itemsize
    # Backward reads the wanted rows once more, and a gradient is written for all.
    read, written = wanted * case.vocab * item * (2 if backward else 1), num_rows * case.vocab * item * backward
    return (read + written) / rate["copy_bytes_per_s"]


def caller(
    way: Way, data: Data, pristine: Tensor | None, backward: bool
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(what comes before the clock, what is timed)."""
    leaves = tuple(leaf.detach().requires_grad_(backward) for leaf in data.leaves)
    # In place means over memory that is not a leaf: a detached view of it stands for the model's output.
    grad = data.grad[data.rows[way.density]] if way.family == "compact" else data.grad

    def prepare() -> None:
        if way.destroys and pristine is not None:
            data.leaves[0].copy_(pristine)

    def call() -> tuple[Tensor, ...]:
        if not backward:
            with torch.no_grad():
                return (way.formula(*leaves),)
        inputs = tuple(leaf.view_as(leaf) for leaf in leaves) if way.destroys else leaves
        logprob = way.formula(*inputs)
        wanted = grad[: logprob.shape[0]].to(logprob.dtype)
        return (logprob.detach(), *torch.autograd.grad(logprob, leaves, wanted))

    return prepare, call


def truth(data: Data, rows: Tensor) -> Tensor:
    """Log-probs of a few rows in float64."""
    x = data.leaves[0][rows].double()
    logits = x @ data.leaves[1].double().t() if len(data.leaves) == 2 else x
    return logits.gather(-1, data.labels[rows, None])[:, 0] - logits.logsumexp(-1)


def measure(case: Case, num_rows: int, rounds: int, seed: int, flush: Tensor, rate: dict[str, float]) -> list[dict]:
    """One run of one case: a row for every way and direction."""
    data = draw(case.fused, DTYPES[case.dtype], num_rows, case.vocab, case.depth, seed)
    pristine = None if case.fused else data.leaves[0].clone()
    found = []
    for backward in (False, True):
        entries = [_first(case, way, data, pristine, backward) for way in ways(case.fused, data)]
        for _ in range(rounds):
            for entry in entries:
                if "error" not in entry:
                    entry["prepare"]()
                    entry["times"].append(milliseconds(entry["call"], flush))
        for entry in entries:
            entry.pop("prepare"), entry.pop("call")
            times = entry.pop("times")
            if times:
                floor = floor_seconds(case, num_rows, entry["density"], backward, rate)
                entry |= {"ms": statistics.median(times), "of_floor": 1000 * floor / statistics.median(times)}
        found += entries
    return found


def _first(case: Case, way: Way, data: Data, pristine: Tensor | None, backward: bool) -> dict[str, Any]:
    """Warm-up of a way, its error and its memory; whatever a peer raises is an answer about that peer."""
    prepare, call = caller(way, data, pristine, backward)
    entry: dict[str, Any] = {
        "case": case.name,
        "direction": "forward+backward" if backward else "forward",
        "way": way.name,
        "family": way.family,
        "density": way.density,
        "prepare": prepare,
        "call": call,
        "times": [],
    }
    try:
        prepare()
        rows = data.rows[way.density][:CHECKED_ROWS]
        true = truth(data, rows)
        logprob = call()[0]
        few = (
            logprob[: rows.shape[0]]
            if way.family == "compact" or logprob.shape[0] < data.labels.shape[0]
            else logprob[rows]
        )
        entry["error_of_logprob"] = float(((few.double() - true).abs() / (1 + true.abs())).max())
        prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        del logprob, few
        call()
        entry["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    except Exception as error:
        if way.family == "ours":
            raise
        entry["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
    torch.cuda.empty_cache()
    return entry


def tables(record: dict[str, Any]) -> Iterator[Table]:
    """A table for each case and direction: medians of the runs, all runs beside them."""
    keys = dict.fromkeys((row["case"], row["direction"]) for run in record["runs"] for row in run["rows"])
    for case, direction in keys:
        table = Table("way", "rows", "ms (each run)", "median", "of floor", "MiB", "error", title=f"{case} {direction}")
        for row in summary(record, case, direction):
            if "error" in row:
                table.add_row(row["way"], f"{row['density']:.0%}", row["error"], *[""] * 4)
                continue
            table.add_row(
                row["way"],
                f"{row['density']:.0%}",
                " ".join(f"{ms:.3f}" for ms in row["ms"]),
                f"{statistics.median(row['ms']):.3f}",
                f"{statistics.median(row['of_floor']):.2f}",
                f"{row['peak_mib']:.0f}",
                f"{row['error_of_logprob']:.0e}",
            )
        yield table


def summary(record: dict[str, Any], case: str, direction: str) -> list[dict[str, Any]]:
    """The rows of one table, with the numbers of all runs."""
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for run in record["runs"]:
        for row in run["rows"]:
            if (row["case"], row["direction"]) == (case, direction):
                entry = found.setdefault((row["way"], row["density"]), row | {"ms": [], "of_floor": []})
                if "ms" in row:
                    entry["ms"].append(row["ms"])
                    entry["of_floor"].append(row["of_floor"])
    return sorted(found.values(), key=lambda row: (-row["density"], statistics.median(row["ms"] or [1e9])))


def plot(record: dict[str, Any], path: Path) -> None:
    """Share of the floor by way, a panel for each case and direction; every run is a point."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    keys = list(dict.fromkeys((row["case"], row["direction"]) for run in record["runs"] for row in run["rows"]))
    figure, panels = pyplot.subplots(len(keys), 1, figsize=(9, 3.2 * len(keys)), squeeze=False, layout="constrained")
    for panel, (case, direction) in zip(panels[:, 0], keys, strict=True):
        rows = [row for row in summary(record, case, direction) if row["ms"]][::-1]
        for y, row in enumerate(rows):
            color = "tab:blue" if row["family"] == "ours" else "tab:gray"
            panel.plot(row["of_floor"], [y] * len(row["of_floor"]), "o", color=color)
        panel.set_yticks(range(len(rows)), [f"{row['way']} {row['density']:.0%}" for row in rows], fontsize=7)
        panel.axvline(1.0, color="black", linewidth=0.5)
        panel.set(title=f"{case} {direction}", xlim=(0, 1.15), xlabel="share of the floor")
    figure.suptitle(f"{record['gpu']}, torch {record['versions']['torch']}, {record['num_rows']} rows")
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in cases()]
    parser.add_argument("--only", default="*", help=f"pattern of cases; there are: {', '.join(names)}")
    parser.add_argument("--rows", type=int, default=8192, help="N (default 8192)")
    parser.add_argument("--runs", type=int, default=5, help="whole runs, each with other numbers (default 5)")
    parser.add_argument("--rounds", type=int, default=7, help="turns within a run (default 7)")
    parser.add_argument("--quick", action="store_true", help="one run of two rounds with 512 rows")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder of the JSON and the plot")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.runs, given.rounds = 512, 1, 2
    if not fnmatch.filter(names, given.only):
        parser.error(f"no case is named {given.only!r}: there are {', '.join(names)}")
    return given


def main() -> int:
    """Measure, print, store."""
    given = parse()
    if not torch.cuda.is_available():
        print("logprob_cuda: no GPU here (torch.cuda.is_available() is False): nothing was measured", file=sys.stderr)
        return 2
    from rl_think_ext.kernels import available_backends

    if "cuda" not in available_backends():
        print("logprob_cuda: rl_think_ext was built without CUDA; build it by `make cuda`", file=sys.stderr)
        return 2
    console = Console(width=150)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    record: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "versions": versions(),
        "num_rows": given.rows,
        "rounds": given.rounds,
        "quick": given.quick,
        "runs": [],
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in range(given.runs):
        rate = rates(flush)
        console.print(f"run {seed + 1} of {given.runs}: " + ", ".join(f"{k} {v:.3g}" for k, v in rate.items()))
        run: dict[str, Any] = {"rates": rate, "rows": []}
        record["runs"].append(run)
        for case in cases():
            if fnmatch.fnmatch(case.name, given.only):
                run["rows"] += measure(case, given.rows, given.rounds, seed, flush, rate)
                # Stored as it grows: an interrupted benchmark has not been for nothing.
                (given.out / "logprob_cuda.json").write_text(json.dumps(record, indent=1))
    console.print(record["gpu"], record["versions"])
    for table in tables(record):
        console.print(table)
    plot(record, given.out / "logprob_cuda.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
