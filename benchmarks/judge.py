"""How much of a judge's capacity a call uses, and what it loses on a bad day: python benchmarks/judge.py [--out FOLDER]

A stub server in another process answers 64 questions at a time, each after 50 ms, and queues the others; 2,000
questions take it 1.5625 s at the least. Each is a prediction of some 100 characters against a reference of 300, no
canaries, nothing known before, several runs for each number of requests under way; the first, which connects, does
not count. Once more with the verdicts stored in a file.

Then the same number of questions where one request in ten is answered 500 or 429 with Retry-After 0.1, or never: what
is lost, what is asked twice, how long it takes, and the deadline where every request hangs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
from judges import answer, honest, prompt_of, quotes, served  # noqa: E402
from stub_server import Reply, Request, StubServer  # noqa: E402

from rl_think_ext.scoring.judge import Pair  # noqa: E402

SLOTS, LATENCY, QUESTIONS = 64, 0.05, 2000
IDEAL = QUESTIONS / SLOTS * LATENCY
BAD_SHARE, TIMEOUT = 0.1, 0.5
WORDS = "the of valve pressure opens bar closes below number list river winter bats key brother limit".split()


def pairs(num: int, seed: int) -> list[Pair]:
    """Pairs that nobody has asked about before; the first half of them right."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=50)) + f" {seed} {i}" for i in range(num)]
    return [
        Pair(text, " ".join(text.split()[:16]) if i < num // 2 else "wrong " + text[:100])
        for i, text in enumerate(references)
    ]


@contextmanager
def server(latency: float) -> Iterator[str]:
    """The address of a stub judge in a process of its own, which accepts everything."""
    verdict = json.dumps(answer("Score: 1").body)
    command = [sys.executable, str(TESTS / "stub_server.py"), "--slots", str(SLOTS), "--latency", str(latency)]
    with subprocess.Popen(
        [*command, "--reply", verdict], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


def capacity(url: str, at_once: int, runs: int, cache_file: str | None = None) -> dict[str, Any]:
    """Seconds and CPU time of several calls."""
    judge = served(url, max_concurrency=at_once, cache_file=cache_file, deadline=60.0)
    times = []
    for seed in range(runs + 1):
        asked = pairs(QUESTIONS, seed)
        begin = time.perf_counter(), time.process_time()
        assert all(score.value == 1.0 for score in judge(asked))
        times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    seconds = [one for one, _ in times[1:]]
    median = statistics.median(seconds)
    return {
        "at_once": at_once, "file": cache_file is not None, "seconds": median, "fastest": min(seconds),
        "slowest": max(seconds), "share": IDEAL / median,
        "cpu_ms_per_question": 1e3 * statistics.median(one for _, one in times[1:]) / QUESTIONS,
    }  # fmt: skip


def bad_day(num: int = QUESTIONS, seed: int = 0, timeout: float = TIMEOUT) -> dict[str, Any]:
    """A call to a server that fails one request in ten, by a draw of its own for every request."""
    draw, answered = random.Random(seed), list[tuple[str, str]]()

    def act(request: Request) -> Reply:
        fault = draw.choice(["500", "429", "hang"]) if draw.random() < BAD_SHARE else None
        if fault == "hang":
            return Reply(fault="hang")
        if fault:
            return Reply(status=int(fault), headers={"Retry-After": "0.1"} if fault == "429" else {}, delay=LATENCY)
        answered.append(quotes(prompt_of(request)))
        return replace(honest(request), delay=LATENCY)

    asked = pairs(num, seed)
    with StubServer(act) as stub:
        judge = served(stub, max_concurrency=SLOTS, timeout=timeout, retries=6, deadline=60.0)
        scores = judge(asked)
        stats, num_requests, num_repeated = judge.stats, len(stub.requests), judge.endpoint.stats.num_retries
    right = [float(i < num // 2) for i in range(num)]
    values = [score.value for score in scores]
    return {
        "questions": num, "requests": num_requests, "repeated": num_repeated, "lost": values.count(None),
        "wrong": sum(value not in (None, expected) for value, expected in zip(values, right, strict=True)),
        "answered_twice": len(answered) - len(set(answered)), "seconds": stats["seconds"],
    }  # fmt: skip


def all_hang(deadline: float) -> dict[str, float]:
    """A call in which nobody ever answers."""
    with StubServer(lambda _: Reply(fault="hang")) as stub:
        judge = served(stub, max_concurrency=SLOTS, timeout=60.0, deadline=deadline)
        scores = judge(pairs(QUESTIONS, 0))
    assert all(score.value is None for score in scores)
    return {"deadline": deadline, "seconds": judge.stats["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with server(LATENCY) as url, tempfile.TemporaryDirectory() as folder:
        rows = [capacity(url, at_once, arguments.runs) for at_once in (SLOTS, 72, 80)]
        rows.append(capacity(url, 80, arguments.runs, f"{folder}/verdicts.sqlite"))
    for row in rows:
        print(
            f"{row['at_once']:3d} at once{', stored' if row['file'] else '':8}: {row['seconds']:.3f} s "
            f"({row['fastest']:.3f} to {row['slowest']:.3f}), {row['share']:.1%} of the capacity, "
            f"{row['cpu_ms_per_question']:.2f} ms CPU each"
        )
    bad, hang = [bad_day(seed=seed) for seed in range(3)], all_hang(3.0)
    for one in bad:
        print("one in ten fails:", ", ".join(f"{key} {value:,.5g}" for key, value in one.items()))
    print(f"all hang: {hang['seconds']:.3f} s at a deadline of {hang['deadline']:g} s")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        facts = {"python": platform.python_version(), "cpus": os.cpu_count()}
        result = {"rows": rows, "one_in_ten_fails": bad, "all_hang": hang, "machine": facts}
        (arguments.out / "judge.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
