"""An HTTP server on loopback that answers what it is told to, faults included; by itself one with slots and a latency.

In a test, `with StubServer(answer) as server:` runs it in a thread; `answer(request)` gives a Reply. By itself,
`python tests/stub_server.py --slots 64 --latency 0.05` prints its port and ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    number: int  # of all that came, from 0
    path: str
    headers: Mapping[str, str]
    content: bytes
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass(frozen=True)
class Reply:
    """`body` is bytes as they are, or anything else as JSON; `fault` is "close", "middle", "hang", "trickle" or "raw".

    close: at once, without a word; middle: after all but five bytes; hang: never a word; trickle: a byte every 50 ms;
    raw: the body is the whole reply, and then the server closes.
    """

    body: Any = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    fault: str | None = None

    def encoded(self) -> bytes:
        if self.fault == "raw":
            return b""
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        lines = [f"HTTP/1.1 {self.status} X", f"Content-Length: {len(body)}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body


class _Connection(asyncio.Protocol):
    def __init__(self, server: StubServer, number: int) -> None:
        self.server, self.number, self.buffer = server, number, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        request = Request(len(self.server.requests), first.split(" ")[1], headers, rest[:length], self.number)
        self.server.handle(self, request)

    def send(self, reply: Reply) -> None:
        content = reply.encoded()
        if reply.fault == "close":
            self.transport.close()
        elif reply.fault == "raw":
            self.transport.write(reply.body)
            self.transport.close()
        elif reply.fault == "middle":
            self.transport.write(content[:-5])
            self.transport.close()
        elif reply.fault == "trickle":
            self.trickle(content)
        elif reply.fault != "hang":
            self.transport.write(content)

    def trickle(self, content: bytes) -> None:
        if content and not self.transport.is_closing():
            self.transport.write(content[:1])
            asyncio.get_running_loop().call_later(0.05, self.trickle, content[1:])


class StubServer:
    """Keeps every request, and how many were under way at once."""

    def __init__(self, answer: Callable[[Request], Reply], port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.answer, self.port, self.tls = answer, port, tls
        self.requests: list[Request] = []
        self.open: set[_Connection] = set()
        self.num_connections = self.under_way = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle(self, connection: _Connection, request: Request) -> None:
        self.requests.append(request)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        reply = self.answer(request)
        if reply.fault == "hang":
            return

        def finish() -> None:
            self.under_way -= 1
            connection.send(reply)

        if reply.delay:
            asyncio.get_running_loop().call_later(reply.delay, finish)
        else:
            finish()

    def connection(self) -> _Connection:
        self.num_connections += 1
        return _Connection(self, self.num_connections)

    async def listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self.connection, "127.0.0.1", self.port, backlog=1024, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def __enter__(self) -> StubServer:
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(self.listen())
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        def stop() -> None:
            self._server.close()
            for connection in list(self.open):
                connection.transport.abort()
            self._loop.call_soon(self._loop.stop)

        self._loop.call_soon_threadsafe(stop)
        self._thread.join(5)
        self._loop.close()


class SlottedServer:
    """`slots` requests at a time, each `latency` seconds; the others wait in a queue.

    A slot that takes from the queue began when it became free, not when a timer of whole milliseconds fired.
    """

    def __init__(self, slots: int, latency: float, reply: bytes) -> None:
        self.latency, self.num_free = latency, slots
        self.queue: deque[asyncio.WriteTransport] = deque()
        self.content = Reply(reply).encoded()

    def handle(self, transport: asyncio.WriteTransport) -> None:
        if self.num_free:
            self.num_free -= 1
            self.begin(transport, asyncio.get_running_loop().time())
        else:
            self.queue.append(transport)

    def begin(self, transport: asyncio.WriteTransport, now: float) -> None:
        asyncio.get_running_loop().call_at(now + self.latency, self.finish, transport, now + self.latency)

    def finish(self, transport: asyncio.WriteTransport, now: float) -> None:
        transport.write(self.content)
        if self.queue:
            self.begin(self.queue.popleft(), now)
        else:
            self.num_free += 1


class _Slotted(asyncio.Protocol):
    """Looks for nothing but the end of a request, so that the server is not what a benchmark measures."""

    def __init__(self, server: SlottedServer) -> None:
        self.server, self.buffer = server, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self.buffer.index(b"Content-Length: ") + 16
        if len(self.buffer) >= end + 4 + int(self.buffer[at : self.buffer.index(b"\r", at)]):
            self.buffer = b""
            self.server.handle(self.transport)


async def _main(slots: int, latency: float, reply: bytes) -> None:
    server = SlottedServer(slots, latency, reply)
    listening = await asyncio.get_running_loop().create_server(lambda: _Slotted(server), "127.0.0.1", 0, backlog=1024)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--reply", default='{"data": [{"index": 0, "probs": [0.5]}]}', help="JSON")
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.slots, arguments.latency, arguments.reply.encode()))
