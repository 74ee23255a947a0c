"""What holds for every test: no network unless it is slow, and in CI no skip without a reason that is allowed."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# For a pytest that was not started by make; before anything imports torch or transformers.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "OMP_NUM_THREADS": "2",
}.items():
    os.environ.setdefault(name, value)

# absent: data that the repository cannot ship. gpu: no accelerator here.
ALLOWED_SKIPS = ("absent:", "gpu:")


def pytest_configure(config: pytest.Config) -> None:
    # As plugins they also hold for the doctests of the package, which lie outside this folder.
    config.pluginmanager.register(OfflineTests(), "offline-tests")
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        config.pluginmanager.register(SkipsNeedAReason(), "skips-need-a-reason")


class SkipsNeedAReason:
    """Turns a skip into a failure unless its reason starts with one of ALLOWED_SKIPS; an xfail is left alone."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        return refuse_skip((yield))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Generator[None, Any, Any]:
        return refuse_skip((yield))


def refuse_skip(report: Any) -> Any:
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        path, line, text = report.longrepr
        reason = text.removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS):
            allowed = " or ".join(ALLOWED_SKIPS)
            report.outcome = "failed"
            report.longrepr = (
                f"{path}:{line}: skipped in CI: {reason!r}; a reason that is allowed starts with {allowed}"
            )
    return report


class NetworkBlockedError(RuntimeError):
    """Not an OSError: what retries or forgives a broken connection must not swallow it."""


class OfflineTests:
    """Blocks Python's sockets, loopback aside, while tests are collected and while one runs that is not slow (F36)."""

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, Any, Any]:
        with network_blocked():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        if item.get_closest_marker("slow"):
            return (yield)
        with network_blocked():
            return (yield)


@contextmanager
def network_blocked() -> Iterator[None]:
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def checked_connect(self: socket.socket, address: Any) -> None:
        check_address(self, address)
        connect(self, address)

    def checked_connect_ex(self: socket.socket, address: Any) -> int:
        check_address(self, address)
        return connect_ex(self, address)

    def checked_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        plain = host.decode() if isinstance(host, bytes) else host
        if plain and plain.endswith(".invalid"):  # RFC 2606: never resolves; asking would need a network
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if plain and plain != socket.gethostname() and not is_local(plain):
            raise NetworkBlockedError(f"a test that is not slow looked up {plain!r}; tests run offline (F36)")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", checked_connect)
        patch.setattr(socket.socket, "connect_ex", checked_connect_ex)
        patch.setattr(socket, "getaddrinfo", checked_getaddrinfo)
        yield


def check_address(sock: socket.socket, address: Any) -> None:
    if not isinstance(address, tuple) or is_local(address[0]):  # a path is a Unix socket
        return
    if sock.type == socket.SOCK_DGRAM:  # sends nothing yet: how libraries ask for their own address, ready for a no
        raise OSError(errno.ENETUNREACH, "Network is unreachable (tests run offline)")
    raise NetworkBlockedError(
        f"a test that is not slow connected to {address[0]}:{address[1]}; tests run offline (F36)"
    )


def is_local(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host in ("", "localhost")
    return ip.is_loopback or ip.is_unspecified


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The Ray cluster of all runs of verl's loop (tests/verl_runs.py)."""
    from verl_runs import cluster

    with cluster():
        yield
