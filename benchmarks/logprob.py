"""Masked log-probability against the ways that people use today: python benchmarks/logprob.py [--isa avx2] [--quick]

What is timed: rl_think_ext.kernels from logits (masked_logprob) and from hidden states (linear_masked_logprob), forward
and forward with backward, with every row, half of the rows and 5 % of the rows wanted. Against it, in the same process:
TRL's selective_log_softmax and chunked head, F.cross_entropy, log_softmax + gather, torch.compile,
F.linear_cross_entropy with its chunking options, and torch that compacts first.

How:
  runs     five whole runs with other numbers, one process per run and thread count; all are reported, none is picked
  turns    within a run the ways take turns; a ratio is "peer / ours" within a round, and its median over the rounds
           stands for the run. The best anchor is the peer with the smallest such ratio.
  caches   before each call twice the last cache is read, so that nobody finds his rows there
  pages    glibc is told to keep memory (MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_, MALLOC_TOP_PAD_) and the heap is
           touched beforehand: page faults are excluded, and the most that a timed call had is printed
  clock    one thread: CPU time of the whole process, for it leaves out the neighbours of a shared machine and counts
           every thread that a way might start in secret; more threads: wall time, for CPU time would add them up
  slow     a peer over 8 times slower than the fastest is timed once per run: no anchor, so its spread does not matter
  memory   peak of one fused forward above its inputs, in a process of its own, with the allocator as it comes

--isa avx2 holds everyone to AVX2 without a bf16 unit, as on many servers: torch by ATEN_CPU_CAPABILITY, oneDNN by
ONEDNN_MAX_CPU_ISA, Inductor by that and -march=x86-64-v3, ours by RL_THINK_ISA. (MKL's fp32 product uses AVX2 on AMD
either way.) What each library says of itself, and its matmul rates, are printed and stored.

Names of cases, for --only: {logits,fused}.{forward,forward+backward}.{fp32,bf16}.{32k,152k}, memory, overhead.

Examples:
  python benchmarks/logprob.py --quick                      a smoke of a minute or two; its numbers mean little
  python benchmarks/logprob.py --only '*.152k' --threads 1  what the goals are about
  python benchmarks/logprob.py --only memory
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from logprob_plot import plot
from logprob_report import goal_rows, print_tables
from tqdm import tqdm

VOCABS = {"32k": 32_000, "152k": 151_936}
CASES = {
    f"{kind}.{'forward+backward' if backward else 'forward'}.{dtype}.{vocab}": (kind, backward, dtype, VOCABS[vocab])
    for kind, backward, dtype, vocab in itertools.product(("logits", "fused"), (False, True), ("fp32", "bf16"), VOCABS)
}
FULL = {"num_rows": 256, "depth": 896, "rounds": 7, "heap_bytes": 5 * 2**30}
QUICK = {"num_rows": 32, "depth": 64, "rounds": 2, "heap_bytes": 2**29}
MEMORY_WAYS = {
    "ours": (1.0, 0.05),
    "ours (torch)": (1.0,),
    "TRL chunked head": (1.0,),
    "F.linear_cross_entropy": (1.0,),
    "F.linear_cross_entropy, 64 rows": (1.0,),
}
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
}
ISA = {
    "native": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
        "RL_THINK_ISA": "avx2",
    },
}


def environment(isa: str, threads: int, out: Path) -> dict[str, str]:
    """What a child finds; one instruction set and thread count never reads what Inductor compiled for another."""
    ours = {name for values in ISA.values() for name in values}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return {
        **inherited,
        **ISA[isa],
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str((out / f"inductor-{isa}-{threads}").resolve()),
        "HF_HUB_OFFLINE": "1",
    }


def child(spec: dict, env: dict[str, str]) -> Iterator[tuple[str, object]]:
    """(name, result) as a child of `logprob_measure` reports them."""
    command = [sys.executable, str(Path(__file__).with_name("logprob_measure.py")), json.dumps(spec)]
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('["'):
                    yield tuple(json.loads(line))
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"logprob: a measuring process ended with {process.returncode}:\n{errors.read()[-3000:]}")


def measure_times(given: argparse.Namespace, sizes: dict) -> Iterator[dict]:
    """A dict per run and thread count, as soon as it is measured: {run, threads, machine, overhead, cases}."""
    chosen = {name: case for name, case in CASES.items() if wanted(name, given.only)}
    cases = {name: case for name, case in chosen.items() if not given.quick or name.endswith("152k")}
    overhead = wanted("overhead", given.only)
    if not cases and not overhead:
        return
    jobs = list(itertools.product(range(given.runs), given.threads))
    with tqdm(total=len(jobs) * (len(cases) + 1), unit="case", disable=None, smoothing=0) as bar:
        for run, threads in jobs:
            spec = {**sizes, "what": "run", "run": run, "threads": threads, "cases": cases, "overhead": overhead}
            one = {"run": run, "threads": threads, "cases": {}}
            bar.set_description(f"run {run + 1}/{given.runs}, threads {threads}")
            for name, result in child(spec, {**environment(given.isa, threads, given.out), **KEEP_MEMORY}):
                (one["cases"] if name in cases else one)[name] = result
                bar.set_postfix_str(name, refresh=False)
                bar.update(name != "machine")
            yield one


def measure_memory(given: argparse.Namespace, sizes: dict) -> list[dict]:
    """One dict per way, dtype and density: {way, dtype, density, mib}, one thread."""
    if not wanted("memory", given.only):
        return []
    chosen = {"ours": (1.0,)} if given.quick else MEMORY_WAYS
    jobs = [(way, d, dtype) for way, densities in chosen.items() for d in densities for dtype in ("fp32", "bf16")]
    env = environment(given.isa, 1, given.out)
    found = []
    for way, density, dtype in tqdm(jobs, unit="process", desc="memory", disable=None):
        one = {"way": way, "density": density, "dtype": dtype}
        ((_, mib),) = child({**sizes, "what": "memory", "vocab": VOCABS["152k"], **one}, env)
        found.append({**one, "mib": mib})
    return found


def wanted(name: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(name, f"*{pattern}*") for pattern in patterns)


def about(given: argparse.Namespace, sizes: dict) -> dict[str, object]:
    """Machine, versions and settings."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(re.findall(r"^(model name|cpu family|model|flags)\s*: (.*)$", info, re.MULTILINE))
    head = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return {
        "isa": given.isa,
        "quick": given.quick,
        "only": given.only,
        "runs": given.runs,
        **{name: sizes[name] for name in ("num_rows", "depth", "rounds")},
        "commit": subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip(),
        "cpu": {name: fields.get(name) for name in ("model name", "cpu family", "model")},
        "flags": sorted(fields.get("flags", "").split()),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg(),
        "python": platform.python_version(),
        "libc": "-".join(platform.libc_ver()),
        "inductor_compiler": compiler,
        "versions": {name: version(name) for name in ("torch", "trl", "transformers", "numpy", "rl_think_ext")},
        "allocator": KEEP_MEMORY,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=ISA, default="native", help="instructions that everyone may use")
    parser.add_argument("--runs", type=int, help="whole runs (default 5; 1 with --quick)")
    parser.add_argument("--rounds", type=int, help="rounds of a case in a run (default 7, half of it for fused cases)")
    parser.add_argument("--threads", type=int, nargs="+", help="thread counts (default 1 2; 1 with --quick)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="cases whose name matches *PATTERN*")
    parser.add_argument(
        "--quick", action="store_true", help="V = 152k, 32 rows, D = 64, two rounds, one run and thread"
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of JSON and plot")
    parser.add_argument("--replot", action="store_true", help="tables and plot from the JSON that is there")
    given = parser.parse_args()
    given.runs = given.runs or (1 if given.quick else 5)
    given.threads = given.threads or ([1] if given.quick else [1, 2])
    if not any(wanted(name, given.only) for name in (*CASES, "memory", "overhead")):
        parser.error(f"--only {' '.join(given.only)} matches nothing; the names: {', '.join(CASES)}, memory, overhead")
    return given


def store(record: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    given = parse()
    stored = given.out / f"logprob-{given.isa}{'-quick' if given.quick else ''}.json"
    if given.replot:
        record = json.loads(stored.read_text())
    else:
        sizes = {**(QUICK if given.quick else FULL)}
        sizes["rounds"] = given.rounds or sizes["rounds"]
        record = about(given, sizes) | {"runs_measured": [], "memory": []}
        for one in measure_times(given, sizes):
            record["runs_measured"].append(one)
            store(record, stored)  # --replot makes something of it if the rest is interrupted
        record["memory"] = measure_memory(given, sizes)
        record["load_after"] = os.getloadavg()
    record["goals"] = goal_rows(record)
    store(record, stored)
    print_tables(record)
    picture = stored.with_suffix(".svg")
    drawn = plot(record, picture)
    print(f"written to {stored}" + (f" and {picture}" if drawn else ""))


if __name__ == "__main__":
    main()
