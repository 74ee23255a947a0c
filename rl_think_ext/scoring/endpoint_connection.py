"""One kept-alive HTTP/1.1 connection as an httpx transport: h11 on a bare asyncio protocol, at a fifth of the time.

httpx's own transport takes 0.35 ms of CPU for a small request, in its pool and in anyio; at 64 requests in each 50 ms
that is half a core, and the requests of one burst wait for each other (benchmarks/endpoint.py).
"""

from __future__ import annotations

import asyncio
import ssl

import h11
import httpx

LARGEST_REPLY = 64 * 2**20  # bytes
CONNECT_NEXT = 0.25  # seconds after which the next address of a name is tried beside the first (RFC 8305)


class Connection(httpx.AsyncBaseTransport):
    """Carries one request at a time, and connects when it has to; whoever gives a request up closes it."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._protocol: _Protocol | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request whose body is in memory; the response's too.

        Raises:
            httpx.TransportError: no connection, or one that ended or broke the protocol in the middle.
        """
        kept = self._protocol
        if kept is not None and kept.reusable:
            try:
                return await kept.exchange(request)
            except httpx.TransportError:
                # A server may close a connection that is idle just when a request comes (RFC 9112, 9.3.1): once more.
                if not kept.silent:
                    raise
        await self.aclose()
        self._protocol = await self._connect(request.url)
        return await self._protocol.exchange(request)

    async def _connect(self, url: httpx.URL) -> _Protocol:
        port = url.port or (443 if self._tls else 80)
        try:
            _, protocol = await asyncio.get_running_loop().create_connection(
                _Protocol, url.host, port, ssl=self._tls, happy_eyeballs_delay=CONNECT_NEXT
            )
        except (OSError, UnicodeError) as error:  # a name that IDNA does not know
            raise httpx.ConnectError(str(error)) from None
        return protocol

    async def aclose(self) -> None:
        """Drop the connection, also in the middle of a request."""
        if self._protocol is not None:
            self._protocol.drop()
            self._protocol = None


class _Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._waiting: asyncio.Future[httpx.Response] | None = None
        self._lost = False
        self.silent = True  # since the last request

    @property
    def reusable(self) -> bool:
        return not self._lost and not self._transport.is_closing() and self._http.our_state is h11.IDLE

    async def exchange(self, request: httpx.Request) -> httpx.Response:
        self._head: h11.Response | None = None
        self._body: list[bytes] = []
        self._size, self.silent = 0, True
        self._waiting = asyncio.get_running_loop().create_future()
        assert isinstance(request.stream, httpx.ByteStream)
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        parts = [self._http.send(head), *(self._http.send(h11.Data(data=part)) for part in request.stream)]
        self._transport.write(b"".join([*filter(None, parts), self._http.send(h11.EndOfMessage()) or b""]))
        return await self._waiting

    def drop(self) -> None:
        self._lost = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.silent = self.silent and not data
        try:
            self._http.receive_data(data)
            more = True
            while more:
                more = self._take(self._http.next_event())
        except h11.RemoteProtocolError as error:
            self._fail(httpx.RemoteProtocolError(str(error)))

    def eof_received(self) -> None:
        self.data_received(b"")  # the end of a body without a length

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._fail(httpx.ReadError(str(exc or "the server closed the connection")))

    def _take(self, event: object) -> bool:
        """Whether there may be another event now."""
        if isinstance(event, h11.Response):
            self._head = event
        elif isinstance(event, h11.Data):
            self._body.append(bytes(event.data))
            self._size += len(event.data)
            if self._size > LARGEST_REPLY:
                self._fail(httpx.ReadError(f"a reply of more than {LARGEST_REPLY >> 20} MiB"))
        elif isinstance(event, h11.EndOfMessage):
            self._done()
        elif not isinstance(event, h11.InformationalResponse):  # no more data, or no more connection
            if isinstance(event, h11.ConnectionClosed):
                self._fail(httpx.ReadError("the server closed the connection"))
            return False
        return True

    def _done(self) -> None:
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self._transport.close()
        assert self._head is not None
        if self._waiting is not None and not self._waiting.done():
            content = httpx.ByteStream(b"".join(self._body))
            self._waiting.set_result(httpx.Response(self._head.status_code, headers=self._head.headers, stream=content))

    def _fail(self, error: httpx.TransportError) -> None:
        self._transport.abort()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
