"""One process of benchmarks/logprob.py: times its ways, or measures the memory of one. The argument is JSON.

The parent sets what must be set before torch is loaded: the allocator's variables, threads and instruction set.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from logprob_peers import DTYPES, Data, Way, draw, raw_kernel, ways
from torch import Tensor

from rl_think_ext.kernels import available_backends, masked_logprob

SLOW = 8.0  # a peer so many times slower than the fastest peer is timed once, in the warm-up
LEAST_SECONDS = 0.5  # but never for less
GLACIAL_SECONDS = 4.0  # a first call that takes so long is the measurement, but for what compiles


def cache_flusher() -> Callable[[], object]:
    """Reads twice the last cache, so that no way finds its rows there because of the way before it."""
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    largest = max((int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]] for size in sizes), default=2**25)
    words = torch.zeros(min(2 * largest, 2**28) // 4)
    return words.sum


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Times:
    """Seconds of one way by CPU and by wall clock, a number per round, and its page faults."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.faults: list[int] = []
        self.once = False
        self.errors: dict[str, float] = {}

    def time(self, flush: Callable[[], object]) -> tuple[Tensor, ...]:
        """One call; what it returns is freed outside the clocks."""
        if self.way.prepare is not None:
            self.way.prepare()
        flush()
        faults, wall, cpu = page_faults(), time.perf_counter(), time.process_time()
        result = self.way.call()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        self.faults.append(page_faults() - faults)
        return result

    def forget(self) -> None:
        self.cpu, self.wall, self.faults = [], [], []

    def record(self) -> dict[str, object]:
        way = self.way
        return {
            "name": way.name,
            "family": way.family,
            "density": way.density,
            "cpu_s": [float(f"{t:.5g}") for t in self.cpu],
            "wall_s": [float(f"{t:.5g}") for t in self.wall],
            "page_faults": statistics.median(self.faults),
            "once": self.once,
            **self.errors,
        }


def measure_case(spec: dict, kind: str, backward: bool, dtype: str, vocab: int) -> dict[str, object]:
    """Warm-up with a look at the results, then rounds in which the ways take turns, each beginning elsewhere."""
    torch._dynamo.reset()
    data = draw(kind, DTYPES[dtype], vocab, spec["num_rows"], spec["depth"], spec["run"])
    every = ways(kind, backward, data)
    left_out = [way.name for way in every if not worth_it(way, kind, backward, dtype)]
    times = [Times(way) for way in every if way.name not in left_out]
    flush, truth = cache_flusher(), float64_truth(kind, backward, data)
    for one in times:
        one.errors = errors(one.way, one.time(flush), data, truth)
        if one.wall[0] < GLACIAL_SECONDS or one.way.name.endswith("torch.compile"):
            one.forget()  # the first call compiles, and makes threads and buffers
            one.time(flush)
    fastest = min(one.wall[0] for one in times if one.way.family == "peer")
    for one in times:
        one.once = one.way.family in ("peer", "compact") and one.wall[0] > max(SLOW * fastest, LEAST_SECONDS)
        if not one.once:
            one.forget()
    racing = [one for one in times if not one.once]
    rounds = spec["rounds"] if kind == "logits" else max(2, spec["rounds"] // 2)
    gc.collect()
    gc.disable()
    for i in range(rounds):
        start = i * len(racing) // rounds
        for one in racing[start:] + racing[:start]:
            one.time(flush)
    gc.enable()
    return {"ways": [one.record() for one in times], "left_out": left_out}


def worth_it(way: Way, kind: str, backward: bool, dtype: str) -> bool:
    """False where bf16 gradients would be multiplied without a bf16 unit: torch takes 10 to 50 s for one product."""
    own_products = way.family in ("ours", "torch", "floor") or way.name in ("TRL chunked head", "matmul")
    no_unit = dtype == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return own_products or not (kind == "fused" and backward and no_unit)


def float64_truth(kind: str, backward: bool, data: Data) -> tuple[Tensor, ...]:
    """Log-probs [R] of the rows of the sparsest mask, and the gradient of the first input [R, ...] there."""
    rows = data.rows[min(data.rows)]
    first = data.inputs[0][rows].double().requires_grad_(backward)
    logits = first if kind == "logits" else first @ data.inputs[1].double().t()
    logprob = logits.log_softmax(-1).gather(-1, data.labels[rows, None])[:, 0]
    if not backward:
        return (logprob,)
    return (logprob.detach(), *torch.autograd.grad(logprob, first, data.grad[rows].double()))


def errors(way: Way, found: tuple[Tensor, ...], data: Data, truth: tuple[Tensor, ...]) -> dict[str, float]:
    """Largest error of a log-prob, relative to 1 + its size, and of a gradient, relative to the largest one."""
    if way.family == "floor":
        return {}
    rows = data.rows[min(data.rows)]
    result = {"error": ((found[0][rows].double() - truth[0]).abs() / (1 + truth[0].abs())).max().item()}
    if len(truth) > 1:
        result["gradient_error"] = ((found[1][rows].double() - truth[1]).abs().max() / truth[1].abs().max()).item()
    return result


def call_overhead(batches: int) -> dict[str, float | None]:
    """Microseconds of a call on [1, 64] float32 logits: the public function, and the compiled kernel alone."""
    x, y = torch.randn(1, 64), torch.tensor([3])
    calls = {"public_us": lambda: masked_logprob(x, y), "raw_us": raw_kernel(x, y)}
    found: dict[str, list[float]] = {name: [] for name, call in calls.items() if call is not None}
    with torch.no_grad():
        for _ in range(batches):
            for name in found:
                call, start = calls[name], time.perf_counter()
                for _ in range(200):
                    call()
                found[name].append((time.perf_counter() - start) / 200 * 1e6)
    return {name: statistics.median(found[name][1:]) if name in found else None for name in calls}


def machine(threads: int) -> dict[str, object]:
    """What the libraries say of themselves, and the rates that show whether they obey."""
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    try:
        from rl_think_ext.kernels import _native

        ours: str | None = _native.isa()
    except ImportError:
        ours = None
    x, words = torch.randn(1024, 1024), torch.randn(2**25)
    products = {name: partial(torch.mm, x.to(dtype), x.to(dtype).t()) for name, dtype in DTYPES.items()}
    return {
        "aten": torch.backends.cpu.get_cpu_capability(),
        "onednn_bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "inductor": f"{pick_vec_isa()}, -march={config.cpp.march or 'native'}",
        "ours": ours,
        "backends": available_backends(),
        "threads": threads,
        "matmul_gflop_per_s": {name: round(2 * 1024**3 / 1e9 / _median(mm), 1) for name, mm in products.items()},
        "read_gb_per_s": round(words.numel() * 4 / 1e9 / _median(words.sum), 1),
    }


def _median(call: Callable[[], object]) -> float:
    found = []
    for _ in range(6):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def warm_heap(num_bytes: int) -> None:
    """Touches and frees memory, so that glibc has pages for all that follows (it is told never to give them back)."""
    available = memory_kib("/proc/meminfo", "MemAvailable") * 1024
    torch.empty(min(num_bytes, available // 2), dtype=torch.uint8).fill_(1)


def memory_kib(file: str, name: str) -> int:
    """A line of /proc/meminfo or /proc/self/status."""
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(name))


def peak_mib(spec: dict) -> float:
    """Peak memory of one fused forward above its inputs; a tiny call before it loads the code."""

    def chosen(vocab: int, num_rows: int) -> Way:
        data = draw("fused", DTYPES[spec["dtype"]], vocab, num_rows, spec["depth"], 0)
        found = ways("fused", False, data)
        return next(w for w in found if w.name == spec["way"] and w.density in (None, spec["density"]))

    chosen(64, 8).call()
    way = chosen(spec["vocab"], spec["num_rows"])
    gc.collect()
    # What malloc keeps of freed memory would hide as much of the peak.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_kib("/proc/self/status", "VmRSS")
    way.call()
    return (memory_kib("/proc/self/status", "VmHWM") - before) / 1024


def run(spec: dict) -> Iterator[tuple[str, object]]:
    """(name, result) of everything that one process of a run measures."""
    torch.set_num_threads(spec["threads"])
    yield "machine", machine(spec["threads"])
    yield "overhead", call_overhead(spec["rounds"] * 5) if spec["overhead"] else None
    warm_heap(spec["heap_bytes"])
    for case, (kind, backward, dtype, vocab) in spec["cases"].items():
        yield case, measure_case(spec, kind, backward, dtype, vocab)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    given = json.loads(sys.argv[1])
    if given["what"] == "memory":
        torch.set_num_threads(1)
        print(json.dumps(["mib", peak_mib(given)]), flush=True)
    else:
        for item in run(given):
            print(json.dumps(item), flush=True)
