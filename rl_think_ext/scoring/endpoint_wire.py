"""One request over HTTP: a connection for each that may be under way, and what every kind of reply means (F1-F5)."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

import httpx

from rl_think_ext.errors import UserError, redact
from rl_think_ext.scoring.endpoint_connection import Connection

LONGEST_RETRY_AFTER = 30.0  # seconds; a server that asks for an hour is asked again earlier, or not at all
SHOWN = 200  # characters of a server's message
# This one body is at fault: a text that is too long, or that the server cannot read.
OF_THE_BODY = {400, 413, 422}
PASSES = {408, 425, 429}
Headers = list[tuple[bytes, bytes]]


class TryAgain(Exception):  # noqa: N818 - a wish, not an error
    """A failure that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Rejected(Exception):  # noqa: N818
    """The server takes requests, but not this one."""


def shown_url(url: str) -> str:
    """A URL without what may be secret in it: user, password, query (F39).

    >>> shown_url("https://me:secret@host:8000/v1?key=secret")
    'https://host:8000/v1'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def public(config: Any) -> dict[str, Any]:
    """The settings as they may be printed and stored: an address without its password or key (F39)."""
    values = dict(vars(config))
    return values | {name: shown_url(values[name]) for name in ("server",) if values.get(name)}


class Wire:
    """The connections to one server, `limit` of them, each carrying one request at a time; lives on one event loop.

    One that broke or was given up is dropped. Neither proxies nor credentials are taken from the environment: the
    requests go to the URL of the settings. Only SSL_CERT_FILE and SSL_CERT_DIR are, for a company's own authority.
    """

    def __init__(self, url: str, key: str | None, limit: int, timeout: float) -> None:
        parts = urlsplit(url)
        self.shown = shown_url(url)
        self.timeout = timeout
        self._secrets = list(
            filter(None, [key, parts.query, *_userinfo(parts), *dict(parse_qsl(parts.query)).values()])
        )
        # Paths are given whole: an address as OpenAI's clients take it, with /v1 at its end, means the same server.
        root = parts.path.rstrip("/").removesuffix("/v1")
        self._parts = (parts.scheme, parts.netloc.rpartition("@")[2], root, parts.query)
        self._headers = [(b"Host", self.url("").netloc), *_headers(key, parts.username, parts.password)]
        tls = httpx.create_ssl_context() if parts.scheme == "https" else None
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()  # the warm ones first
        for _ in range(limit):
            self._free.put_nowait(Connection(tls))

    def url(self, path: str) -> httpx.URL:
        """Where the requests for a path go."""
        scheme, host, root, query = self._parts
        return httpx.URL(urlunsplit((scheme, host, root + path, query, "")))

    async def post(self, url: httpx.URL, content: bytes) -> bytes:
        """The body of a good reply, after one try.

        Raises:
            TryAgain: no connection, no whole reply in time, or a status that may pass.
            Rejected: the server refuses this body.
            UserError: a status that no request will change.
        """
        connection = await self._free.get()
        whole = False
        try:
            async with asyncio.timeout(self.timeout):
                status, headers, body = await self._exchange(connection, url, content)
            whole = True
        except TimeoutError:
            raise TryAgain(f"timeout: no whole reply within {self.timeout:g} s") from None
        except (httpx.HTTPError, OSError) as error:
            detail = self.clean(str(error))
            raise TryAgain(f"connection: {type(error).__name__}{': ' if detail else ''}{detail}") from None
        finally:
            if not whole:
                await connection.aclose()
            self._free.put_nowait(connection)
        if not 200 <= status < 300:
            self._refuse(status, headers, body)
        return body

    async def _exchange(
        self, connection: Connection, url: httpx.URL, content: bytes
    ) -> tuple[int, httpx.Headers, bytes]:
        # Past httpx's client: no redirects, cookies or proxies, and no log line with the whole URL.
        headers = [*self._headers, (b"Content-Length", b"%d" % len(content))]
        request = httpx.Request("POST", url, headers=headers, stream=httpx.ByteStream(content))
        response = await connection.handle_async_request(request)
        assert isinstance(response.stream, httpx.ByteStream)
        # Not response.content, which would unpack what nobody asked to be packed.
        return response.status_code, response.headers, b"".join(response.stream)

    def _refuse(self, status: int, headers: Mapping[str, str], body: bytes) -> NoReturn:
        said = self.clean(body.decode("utf-8", "replace"))
        reason = f"http {status}: {said}" if said else f"http {status}"
        if status in PASSES or status >= 500:
            raise TryAgain(reason, retry_after(headers.get("retry-after")))
        if status in OF_THE_BODY:
            raise Rejected(reason)
        if status < 400 and "location" in headers:
            reason = f"http {status}: moved to {shown_url(headers['location'])}"
        raise UserError(f"{self.shown} refused a request: {reason}. {_advice(status)}")

    def clean(self, text: str) -> str:
        """The beginning of a text that came from outside, on one line, without our secrets and control characters."""
        for secret in self._secrets:
            if len(secret) > 3:  # what is shorter is in every text, and no secret
                text = text.replace(secret, "***")
        text = redact(re.sub(r"[\x00-\x20\x7f-\x9f]+", " ", text).strip())
        return text if len(text) <= SHOWN else text[:SHOWN] + "…"

    async def aclose(self) -> None:
        """Close every connection that is not in use."""
        while not self._free.empty():
            await self._free.get_nowait().aclose()


def _userinfo(parts: SplitResult) -> list[str]:
    """The password, or what stands alone in its place, as it is written and as it is meant."""
    secret = parts.password or parts.username or ""
    return [unquote(secret), secret]


def _headers(key: str | None, user: str | None, password: str | None) -> Headers:
    headers = [(b"Content-Type", b"application/json"), (b"Accept-Encoding", b"identity")]
    headers.append((b"User-Agent", b"rl_think_ext"))
    if key is not None:
        headers.append((b"Authorization", b"Bearer " + key.encode("ascii")))
    elif user is not None:
        pair = f"{unquote(user)}:{unquote(password or '')}".encode()
        headers.append((b"Authorization", b"Basic " + base64.b64encode(pair)))
    return headers


def retry_after(value: str | None) -> float | None:
    """Seconds out of a Retry-After header, at most LONGEST_RETRY_AFTER; None when there is none that can be read.

    >>> retry_after("2"), retry_after("86400"), retry_after("soon"), retry_after(None)
    (2.0, 30.0, None, None)
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if seconds == seconds else None


def _advice(status: int) -> str:
    if status in (401, 403):
        return "Name the environment variable that holds the key in `api_key_env`, or look whether the key is valid."
    if status == 404:
        return "Look at the address, the model's name on the server, and whether it serves this kind of model."
    return "Look at the address in the settings."


def checked_key(name: str | None, environment: Mapping[str, Any]) -> str | None:
    """The API key out of the environment variable `name`.

    Raises:
        UserError: the variable is not set, or holds what no header can carry; the value is not shown (F39).
    """
    if name is None:
        return None
    key = str(environment.get(name, "")).strip()
    if not key:
        raise UserError(f"`api_key_env` names the environment variable {name}, which is not set")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"the environment variable {name} holds no API key: it has blanks or characters beyond ASCII")
    return key
