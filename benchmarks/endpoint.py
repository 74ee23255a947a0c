"""How much of a server's capacity the endpoint uses: python benchmarks/endpoint.py [--out FOLDER]

A stub server in another process answers 64 requests at a time, each after 50 ms, and queues the others; 512 requests
take it 400 ms. Requests of 200 token ids, a warm client, several runs for each number of requests under way:

  64   as many as the server has slots: a slot stands idle from its answer until the next request has come
  80   a few more, so that the server's queue is never empty; 95 % of the capacity is 421 ms

each beside a floor: bytes written to bare asyncio connections, replies cut off at the blank line, the runs interleaved.
Printed and written as JSON: medians and ranges of seconds, share of the capacity, and CPU time per request. The same
with the server's latency 0 says how many requests a second both together reach.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rl_think_ext.scoring.endpoint import Endpoint, EndpointConfig

STUB = Path(__file__).parent.parent / "tests/stub_server.py"
SLOTS, LATENCY, REQUESTS = 64, 0.05, 512
IDEAL = REQUESTS / SLOTS * LATENCY
BODY = {"model": "rm", "input": [list(range(1000, 1200))], "use_activation": False}


@contextmanager
def server(latency: float) -> Iterator[str]:
    """The address of a stub server in a process of its own."""
    command = [sys.executable, str(STUB), "--slots", str(SLOTS), "--latency", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


class Bare(asyncio.Protocol):
    """A connection of the floor: no HTTP library, no time-outs, no errors."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.reply.set_result(json.loads(data.partition(b"\r\n\r\n")[2]))

    async def ask(self, host: str) -> Any:
        content = json.dumps(BODY, separators=(",", ":")).encode()
        head = f"POST /classify HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
        self.reply = asyncio.get_running_loop().create_future()
        self.transport.write(head.encode() + content)
        return await self.reply


class Floor:
    """Asks through bare connections, on a loop of its own."""

    def __init__(self, url: str, at_once: int) -> None:
        self.host, self.loop = url.removeprefix("http://"), asyncio.new_event_loop()
        name, port = self.host.split(":")
        connect = [self.loop.create_connection(Bare, name, int(port)) for _ in range(at_once)]
        self.connections = [self.loop.run_until_complete(one)[1] for one in connect]

    def __call__(self) -> list[float]:
        numbers = iter(range(REQUESTS))

        async def work(connection: Bare) -> list[float]:
            return [(await connection.ask(self.host))["data"][0]["probs"][0] for _ in numbers]

        async def all_of_them() -> list[list[float]]:
            return await asyncio.gather(*map(work, self.connections))

        return [answer for answers in self.loop.run_until_complete(all_of_them()) for answer in answers]


def measure(url: str, at_once: int, runs: int) -> dict[str, Any]:
    """Seconds and CPU time of several runs, ours and the floor in turn; the first, which connects, does not count."""
    endpoint = Endpoint(EndpointConfig(url, max_concurrency=at_once, retries=0))
    bodies = [BODY] * REQUESTS
    ways = {
        "ours": lambda: endpoint.ask("/classify", bodies, lambda reply: reply["data"][0]["probs"][0]),
        "floor": Floor(url, at_once),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, way in ways.items():
            begin = time.perf_counter(), time.process_time()
            assert way() == [0.5] * REQUESTS
            times[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return {"at_once": at_once} | {name: summary(pairs[1:]) for name, pairs in times.items()}


def summary(times: list[tuple[float, float]]) -> dict[str, float]:
    seconds = [one for one, _ in times]
    median = statistics.median(seconds)
    cpu = 1e3 * statistics.median(one for _, one in times) / REQUESTS
    return {
        "seconds": median, "fastest": min(seconds), "slowest": max(seconds),
        "share": IDEAL / median, "cpu_ms_per_request": cpu,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with server(LATENCY) as url:
        rows = [measure(url, at_once, arguments.runs) for at_once in (SLOTS, 72, 80, 96)]
    with server(0.0) as url:
        fastest = measure(url, 80, arguments.runs)
    for row in rows:
        for way in ("ours", "floor"):
            one = row[way]
            print(
                f"{row['at_once']:4d} at once, {way:5}: {1e3 * one['seconds']:.0f} ms ({1e3 * one['fastest']:.0f} to "
                f"{1e3 * one['slowest']:.0f}), {one['share']:.1%}, {one['cpu_ms_per_request']:.2f} ms CPU each"
            )
    per_second = REQUESTS / fastest["ours"]["seconds"]
    print(f"latency 0: {per_second:.0f} requests a second, floor {REQUESTS / fastest['floor']['seconds']:.0f}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        facts = {"python": platform.python_version(), "cpus": os.cpu_count(), "httpx": version("httpx")}
        result = {"rows": rows, "requests_a_second": per_second, "machine": facts}
        (arguments.out / "endpoint.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
