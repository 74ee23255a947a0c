"""What benchmarks/logprob.py says of its measurements: ratios, goals, tables. Needs no torch."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

DENSITIES = (1.0, 0.5, 0.05)
PEERS = ("peer", "compact")


@dataclass(frozen=True)
class Goal:
    """`value` of `case` at one thread, over the runs: the smallest ratio of the anchors to ours."""

    name: str
    case: str
    density: float
    least: float
    anchors: tuple[str, ...] = PEERS  # families, or names of ways
    ours: str = "ours"


CHUNKED = ("TRL chunked head",)
GOALS = (
    Goal("from logits, forward, fp32", "logits.forward.fp32.152k", 1, 4.0),
    Goal("from logits, forward, bf16", "logits.forward.bf16.152k", 1, 3.7),
    Goal("from logits, forward + backward, fp32", "logits.forward+backward.fp32.152k", 1, 3.3),
    Goal("from logits, forward + backward, bf16", "logits.forward+backward.bf16.152k", 1, 3.0),
    Goal("5 %, forward, fp32, against torch that compacts", "logits.forward.fp32.152k", 0.05, 2.4, ("compact",)),
    Goal("5 %, forward, bf16, against torch that compacts", "logits.forward.bf16.152k", 0.05, 2.4, ("compact",)),
    *(
        Goal(
            f"5 %, in place, forward + backward, {dtype}, against F.cross_entropy",
            f"logits.forward+backward.{dtype}.152k",
            0.05,
            10,
            ("F.cross_entropy",),
            "ours, in place",
        )
        for dtype in ("fp32", "bf16")
    ),
    Goal("fused, forward, bf16", "fused.forward.bf16.152k", 1, 3.5),
    Goal("fused, 5 %, bf16, against TRL's chunked head", "fused.forward.bf16.152k", 0.05, 20, CHUNKED),
    Goal("fused, 5 %, fp32, against TRL's chunked head", "fused.forward.fp32.152k", 0.05, 8, CHUNKED),
    Goal("fused, 5 %, bf16, against torch that compacts", "fused.forward.bf16.152k", 0.05, 3, ("compact",)),
    Goal("fused, fp32, against a bare matmul", "fused.forward.fp32.152k", 1, 0.95, ("bare matmul",)),
)
MEMORY_GOAL = ("fused, extra memory of the forward, N = 256, MiB", 16.0)
OVERHEAD_GOAL = ("call on [1, 64] above the raw kernel, µs", 10.0)


def seconds(way: dict, threads: int) -> list[float]:
    """CPU time of one thread, wall time of more."""
    return way["cpu_s"] if threads == 1 else way["wall_s"]


def ratio(other: dict, ours: dict, threads: int) -> float:
    """Median over the rounds of other / ours; a way that was timed once against the median of ours."""
    a, b = seconds(other, threads), seconds(ours, threads)
    if len(a) != len(b):
        return statistics.median(a) / statistics.median(b)
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def way_of(case: dict, name: str, density: float) -> dict | None:
    """The way of that name for the density; those that compute every row stand for each."""
    return next((w for w in case["ways"] if w["name"] == name and w["density"] in (None, density)), None)


def ratios(case: dict, density: float, threads: int, ours: str = "ours") -> dict[str, dict]:
    """name -> {family, ratio} of every way that can stand beside ours at this density."""
    own = way_of(case, ours, density)
    assert own is not None
    rest = [w for w in case["ways"] if w is not own and w["density"] in (None, density)]
    return {w["name"]: {"family": w["family"], "ratio": ratio(w, own, threads)} for w in rest}


def best_anchor(found: dict[str, dict], anchors: tuple[str, ...]) -> tuple[str, float]:
    """Name and ratio of the fastest among these families or names."""
    fitting = {name: r["ratio"] for name, r in found.items() if name in anchors or r["family"] in anchors}
    name = min(fitting, key=fitting.__getitem__)
    return name, fitting[name]


def over_runs(record: dict, case: str, threads: int) -> list[dict]:
    """That case of every run that measured it."""
    return [r["cases"][case] for r in record["runs_measured"] if r["threads"] == threads and case in r["cases"]]


def spread(values: list[float]) -> dict[str, float | list[float]]:
    return {"value": statistics.median(values), "least": min(values), "most": max(values), "runs": values}


def goal_rows(record: dict) -> list[dict]:
    """Every goal, measured or not: {name, goal, reached, anchor, value, least, most, runs}; None where not measured.

    `torch_reference` is the ratio of our torch backend, which is no anchor, to ours.
    """
    rows = []
    for goal in GOALS:
        row = {"name": goal.name, "case": goal.case, "density": goal.density, "goal": goal.least, "at_least": True}
        cases = over_runs(record, goal.case, 1)
        if cases:
            tables = [ratios(case, goal.density, 1, goal.ours) for case in cases]
            best = [best_anchor(table, goal.anchors) for table in tables]
            row |= spread([value for _, value in best])
            row["anchor"] = Counter(name for name, _ in best).most_common(1)[0][0]
            row["torch_reference"] = statistics.median(t["ours (torch)"]["ratio"] for t in tables)
        rows.append(row)
    memory = [m["mib"] for m in record["memory"] if m["way"] == "ours"]
    costs = [r["overhead"] for r in record["runs_measured"] if r["threads"] == 1 and r.get("overhead")]
    costs = [cost["public_us"] - cost["raw_us"] for cost in costs if cost["raw_us"] is not None]
    for (name, most), values in ((MEMORY_GOAL, [max(memory)] if memory else []), (OVERHEAD_GOAL, costs)):
        rows.append({"name": name, "goal": most, "at_least": False, **(spread(values) if values else {})})
    return [_judged(row, record["quick"]) for row in rows]


def _judged(row: dict, quick: bool) -> dict:
    """No verdict over small sizes."""
    value = row.setdefault("value", None)
    row["reached"] = None
    if value is not None and not quick:
        row["reached"] = value >= row["goal"] if row["at_least"] else value <= row["goal"]
    return row


# Tables.


def print_tables(record: dict) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    describe(record, console)
    console.print(goals_table(record))
    for table in ratio_tables(record):
        console.print(table)
    for table in filter(None, (error_table(record, kind) for kind in ("logits", "fused"))):
        console.print(table)
    if record["memory"]:
        table = Table(
            "way", "dtype", "rows", "MiB", title="Peak memory of one fused forward above its inputs, V = 151,936"
        )
        for m in record["memory"]:
            table.add_row(m["way"], m["dtype"], f"{m['density']:.0%}", f"{m['mib']:.0f}")
        console.print(table)
    if record["quick"]:
        console.print("--quick: small sizes; these numbers mean little, and no goal is judged.")


def describe(record: dict, console: Console) -> None:
    cpu, versions = record["cpu"], record["versions"]
    console.print(
        f"{cpu['model name']} (family {cpu['cpu family']}, model {cpu['model']}), instructions: {record['isa']}"
    )
    console.print(", ".join(f"{name} {v}" for name, v in versions.items()) + f", {record['libc']}", highlight=False)
    if record["runs_measured"]:
        m = record["runs_measured"][0]["machine"]
        console.print(
            f"ATen {m['aten']}, oneDNN bf16 {'yes' if m['onednn_bf16'] else 'no'}, Inductor {m['inductor']}, ours "
            f"{m['ours'] or 'not built'}; matmul fp32 {m['matmul_gflop_per_s']['fp32']}, bf16 "
            f"{m['matmul_gflop_per_s']['bf16']} GFLOP/s, read {m['read_gb_per_s']} GB/s",
            highlight=False,
        )
    ways = [w for r in record["runs_measured"] for c in r["cases"].values() for w in c["ways"] if not w["once"]]
    if ways:
        worst = max(ways, key=lambda w: w["page_faults"])
        said = f"most page faults of a timed call (median of a case): {worst['page_faults']:.0f} ({worst['name']})"
        console.print(f"page faults excluded by {', '.join(record['allocator'])} and a heap touched before; {said}")
        console.print(
            "one thread: CPU time of the process; more: wall time; each figure the median of interleaved rounds"
        )


def goals_table(record: dict) -> Table:
    title = (
        f"Goals: one thread, V = 151,936, N = {record['num_rows']}, D = {record['depth']}; peer / ours, over the runs"
    )
    table = Table("goal", "asked", "median", "least – most", "reached", "best anchor", "ours (torch)", title=title)
    for row in record["goals"]:
        if row["value"] is None:
            table.add_row(row["name"], _asked(row), "not measured", "", "", "", "")
            continue
        verdict = {True: "[green]yes", False: "[red]no", None: "–"}[row["reached"]]
        range_ = f"{row['least']:.2f} – {row['most']:.2f}"
        beside = f"{row['torch_reference']:.2f}" if "torch_reference" in row else ""
        table.add_row(row["name"], _asked(row), f"{row['value']:.2f}", range_, verdict, row.get("anchor", ""), beside)
    return table


def _asked(row: dict) -> str:
    return f"{'≥' if row['at_least'] else '≤'} {row['goal']:g}"


def ratio_tables(record: dict) -> Iterator[Table]:
    """One per kind, direction and thread count: a row per way, a column per dtype, vocabulary and density."""
    found = {(*case.split(".")[:2], r["threads"]) for r in record["runs_measured"] for case in r["cases"]}
    for kind, direction, threads in sorted(found, key=lambda key: (key[0] != "logits", key[1], key[2])):
        columns = [
            Column(
                f"{dtype} {vocab}", density, over_runs(record, f"{kind}.{direction}.{dtype}.{vocab}", threads), threads
            )
            for dtype in ("fp32", "bf16")
            for vocab in ("32k", "152k")
            for density in DENSITIES
        ]
        columns = [column for column in columns if column.runs]
        title = f"{kind}, {direction}, threads: {threads}; time of each way over ours, median over the runs"
        table = Table("", *(column.head for column in columns), title=title)
        for rich_column in table.columns[1:]:
            rich_column.justify = "right"
        table.add_row("ours, ms", *(f"{column.milliseconds():.2f}" for column in columns))
        backward = direction != "forward"
        table.add_row("floor / ours", *(f"{column.floor(kind, backward):.0%}" for column in columns), end_section=True)
        names = dict.fromkeys(name for column in columns for name in column.medians)
        for name in names:
            table.add_row(name, *(column.cell(name) for column in columns))
        yield table


class Column:
    """One dtype, vocabulary and density at one thread count: medians over the runs of every way's ratio to ours."""

    def __init__(self, name: str, density: float, runs: list[dict], threads: int) -> None:
        self.head, self.density, self.runs, self.threads = f"{name}\n{density:.0%}", density, runs, threads
        tables = [ratios(run, density, threads) for run in runs]
        self.families = {name: r["family"] for table in tables for name, r in table.items()}
        self.medians = {n: statistics.median(t[n]["ratio"] for t in tables if n in t) for n in self.families}

    def milliseconds(self) -> float:
        own = [way_of(run, "ours", self.density) for run in self.runs]
        return statistics.median(statistics.median(seconds(way, self.threads)) for way in own if way) * 1e3

    def floor(self, kind: str, backward: bool) -> float:
        return share_of_floor(kind, backward, self.density, self.medians)

    def cell(self, name: str) -> str:
        """The best anchor in bold."""
        if name not in self.medians:
            return ""
        best = min(value for n, value in self.medians.items() if self.families[n] in PEERS)
        return f"{'[bold]' if self.medians[name] == best else ''}{self.medians[name]:.2f}"


def share_of_floor(kind: str, backward: bool, density: float, medians: dict[str, float]) -> float:
    """Least time that the memory (from logits) or the products (fused) take, by this machine's own rates, over ours.

    From logits: wanted rows read once; backward: read again and a gradient of every row written, at the rate of a copy.
    Fused: the matmul of the wanted rows, or the weight read once if that takes longer; with backward three products.
    """
    if kind == "logits":
        read, copy = medians["read (x.sum)"], medians["copy (y.copy_(x))"]
        return density * read + (backward and density * copy + (1 - density) * (copy - read))
    return max(medians["bare matmul"] * density * (3 if backward else 1), medians["read (x.sum)"])


def error_table(record: dict, kind: str) -> Table | None:
    """Largest error against float64 over cases and runs."""
    found: dict[str, dict[str, float]] = {}
    for run in record["runs_measured"]:
        for case, result in run["cases"].items():
            dtype = case.split(".")[2]
            for way in result["ways"] if case.startswith(kind) else ():
                cells = found.setdefault(way["name"], {})
                for what in ("error", "gradient_error"):
                    if what in way:
                        cells[f"{what} {dtype}"] = max(way[what], cells.get(f"{what} {dtype}", 0.0))
    columns = [f"{what} {dtype}" for what in ("error", "gradient_error") for dtype in ("fp32", "bf16")]
    columns = [c for c in columns if any(c in cells for cells in found.values())]
    if not columns:
        return None
    heads = [c.replace("_", ", ").replace("gradient, error", "gradient") for c in columns]
    title = f"{kind}: largest error against float64 (log-prob: over 1 + its size; gradient: over the largest)"
    table = Table("way", *heads, title=title)
    for name, cells in found.items():
        if cells:
            table.add_row(name, *(f"{cells[c]:.1e}" if c in cells else "" for c in columns))
    return table
