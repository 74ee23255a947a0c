"""The HTTP endpoint against a real server on loopback that does what servers do on bad days."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import logging
import os
import pickle
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from stub_server import Reply, Request, StubServer

from rl_think_ext.errors import UserError
from rl_think_ext.scoring.endpoint import Endpoint, EndpointConfig, Failure
from rl_think_ext.scoring.endpoint_call import Stats

KEY, PASSWORD, QUERY = "key-0123456789abcdef", "s3cr3t-pass", "token=q-secret"


def endpoint(server: StubServer | str, **changes: Any) -> Endpoint:
    url = server if isinstance(server, str) else server.url
    return Endpoint(EndpointConfig(url, **({"retries": 0, "timeout": 5.0, "deadline": 10.0} | changes)))


def value(reply: Any) -> Any:
    return reply["value"]


def echo(request: Request) -> Reply:
    return Reply({"value": request.json["i"]})


def bodies(num: int) -> list[dict[str, int]]:
    return [{"i": i} for i in range(num)]


def one_failure(answer: Callable[[Request], Reply], **changes: Any) -> Failure:
    """What the second of three requests has come to, where the others are answered."""
    with StubServer(lambda request: answer(request) if request.json["i"] == 1 else echo(request)) as server:
        first, second, third = endpoint(server, **changes).ask("/x", bodies(3), value)
    assert (first, third) == (0, 2)
    assert isinstance(second, Failure)
    return second


def free_port() -> int:
    with StubServer(echo) as server:
        return server.port


def test_answers_come_in_the_order_of_the_bodies() -> None:
    with StubServer(echo) as server:
        asked = endpoint(server)
        assert asked.ask("/x", bodies(100), value) == list(range(100))
        assert asked.ask("/x", [], value) == []
    assert {request.path for request in server.requests} == {"/x"}
    assert server.requests[0].headers["content-type"] == "application/json"


def test_f7_late_replies_do_not_change_places() -> None:
    with StubServer(lambda r: Reply({"value": r.json["i"]}, delay=0.5 - 0.05 * r.json["i"])) as server:
        came: list[int] = []
        asked = endpoint(server)
        found = asked.ask("/x", bodies(10), value, on_reply=lambda index, result: came.append(index))
    assert found == list(range(10))
    assert came != sorted(came) and sorted(came) == list(range(10))


def test_replies_are_told_in_the_callers_thread_as_they_come() -> None:
    told: list[tuple[int, Any, float, int]] = []
    with StubServer(lambda r: Reply({"value": r.json["i"]}, delay=1.0 * (r.json["i"] == 3))) as server:
        begin = time.monotonic()
        endpoint(server).ask(
            "/x",
            bodies(4),
            value,
            on_reply=lambda i, v: told.append((i, v, time.monotonic() - begin, threading.get_ident())),
        )
    assert [(i, v) for i, v, _, _ in sorted(told)] == [(i, i) for i in range(4)]
    assert told[0][2] < 0.7 < told[-1][2]
    assert {ident for *_, ident in told} == {threading.get_ident()}


def test_f1_a_refused_connection_is_tried_again_and_then_a_failure() -> None:
    asked = endpoint(f"http://127.0.0.1:{free_port()}", retries=1)
    begin = time.monotonic()
    found = asked.ask("/x", bodies(3), value)
    assert time.monotonic() - begin < 4
    assert all(isinstance(one, Failure) and one.kind == "connection" for one in found)
    assert asked.stats.num_retries == 3 and asked.stats.failures == {"connection": 3}


def test_f1_a_name_that_nobody_knows_is_a_failure() -> None:
    (found,) = endpoint("http://reward-server.invalid:8000").ask("/x", bodies(1), value)
    assert isinstance(found, Failure) and "not known" in found.reason


def test_f1_a_server_that_comes_back_is_asked_again() -> None:
    port = free_port()
    asked = endpoint(f"http://127.0.0.1:{port}", retries=5)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(asked.ask, "/x", bodies(2), value)
        time.sleep(0.3)
        with StubServer(echo, port):
            assert later.result() == [0, 1]
    assert asked.stats.num_retries >= 2


@pytest.mark.parametrize("fault", ["hang", "trickle"])
def test_f2_a_try_has_a_time_out_that_holds_for_the_whole_reply(fault: str) -> None:
    begin = time.monotonic()
    assert one_failure(lambda _: Reply({"value": 1}, fault=fault), timeout=0.3).kind == "timeout"
    assert time.monotonic() - begin < 2


def test_f2_the_deadline_is_kept_within_a_tenth() -> None:
    with StubServer(lambda r: Reply({"value": r.json["i"]}, fault="hang" if r.json["i"] % 2 else None)) as server:
        begin = time.monotonic()
        asked = endpoint(server, deadline=2.0, retries=9, timeout=0.4, max_concurrency=4)
        found = asked.ask("/x", bodies(40), value)
    assert 2.0 <= time.monotonic() - begin < 2.2
    assert found[0] == 0
    last = found[-1]
    assert isinstance(last, Failure) and last.kind == "deadline"
    assert isinstance(found[1], Failure) and "last: timeout" in found[1].reason
    assert asked.stats.failures == {"deadline": sum(isinstance(one, Failure) for one in found)}


def test_f2_one_call_may_have_a_shorter_deadline() -> None:
    with StubServer(lambda _: Reply(fault="hang")) as server:
        begin = time.monotonic()
        (found,) = endpoint(server).ask("/x", bodies(1), value, deadline=0.3)
    assert isinstance(found, Failure) and time.monotonic() - begin < 2


def test_f3_500_twice_and_then_200_is_one_answer_told_once() -> None:
    told: list[tuple[int, Any]] = []
    with StubServer(lambda r: Reply(status=500) if r.number < 2 else echo(r)) as server:
        asked = endpoint(server, retries=3)
        found = asked.ask("/x", bodies(1), value, on_reply=lambda *reply: told.append(reply))
    assert found == [0] and told == [(0, 0)]
    assert asked.stats.num_retries == 2 and asked.stats.failures == {} and len(asked.stats.latencies) == 1


def test_f3_retry_after_is_honoured() -> None:
    came: list[float] = []

    def answer(request: Request) -> Reply:
        came.append(time.monotonic())
        return echo(request) if request.number else Reply(status=429, headers={"Retry-After": "1"})

    with StubServer(answer) as server:
        assert endpoint(server, retries=1).ask("/x", bodies(1), value) == [0]
    assert 1.0 <= came[1] - came[0] < 3


def test_f3_a_server_that_asks_for_more_time_than_there_is_is_not_waited_for() -> None:
    begin = time.monotonic()
    found = one_failure(lambda _: Reply(status=503, headers={"Retry-After": "3600"}), retries=3)
    assert found.reason == "http 503: {}" and time.monotonic() - begin < 3


@pytest.mark.parametrize("status", [401, 403, 404, 405, 302])
def test_f4_a_wrong_setting_is_raised_once_without_secrets(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    said = {"error": f"the key {KEY} is not known, {PASSWORD} q-secret \x1b[31m"}
    with StubServer(lambda _: Reply(said, status, delay=0.05)) as server:
        url = f"http://me:{PASSWORD}@127.0.0.1:{server.port}/api?{QUERY}"
        with pytest.raises(UserError) as caught:
            endpoint(url, api_key_env="SERVER_KEY", retries=1, max_concurrency=4).ask("/x", bodies(20), value)
    assert len(server.requests) <= 8  # none a second time, and no more after the first was refused
    assert len({request.content for request in server.requests}) == len(server.requests)
    text = str(caught.value)
    assert f"http://127.0.0.1:{server.port}/api" in text and f"http {status}" in text and "is not known" in text
    assert not any(secret in text for secret in (KEY, PASSWORD, "q-secret", "\x1b"))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("status", [400, 413, 422])
def test_f4_one_refused_body_is_a_failure_of_that_one(status: int) -> None:
    found = one_failure(lambda _: Reply({"error": "the input is too long"}, status), retries=3)
    assert found.refused and found.reason == f'http {status}: {{"error": "the input is too long"}}'


def test_f4_every_body_refused_is_a_wrong_setting_until_the_first_answer() -> None:
    with StubServer(lambda r: echo(r) if r.json["i"] == 7 else Reply({"error": "no such model"}, 400)) as server:
        asked = endpoint(server)
        with pytest.raises(UserError, match=r"refused every request to /x: http 400: .*no such model"):
            asked.ask("/x", bodies(3), value)
        assert all(isinstance(one, Failure) for one in asked.ask("/x", bodies(3), value, refusals_raise=False))
        assert asked.ask("/x", [{"i": 7}], value) == [7]
        assert all(isinstance(one, Failure) for one in asked.ask("/x", bodies(3), value))


@pytest.mark.parametrize(
    "content",
    [
        b"<html>welcome</html>", b"", b'{"value": 1', b"null", b"[]", b'{"value"}', b"\xff\xfe", b"[" * 100_000,
        b'{"other": 1}', b"1" * 5000,
    ],
)  # fmt: skip
def test_f5_a_reply_that_is_no_answer_is_a_failure(content: bytes) -> None:
    assert one_failure(lambda _: Reply(content)).kind == "unreadable"


@pytest.mark.parametrize("content", [b"NaN", b"1e400", b"-Infinity"])
def test_f5_what_json_lets_through_is_for_the_reader_to_refuse(content: bytes) -> None:
    with StubServer(lambda _: Reply(b'{"value": ' + content + b"}")) as server:
        (found,) = endpoint(server).ask("/x", bodies(1), lambda reply: int(reply["value"]))
    assert isinstance(found, Failure) and found.kind == "unreadable"


@pytest.mark.parametrize("fault", ["close", "middle"])
def test_f5_a_connection_that_ends_early_is_tried_again(fault: str) -> None:
    with StubServer(lambda r: echo(r) if r.number else Reply({"value": 5}, fault=fault)) as server:
        assert endpoint(server, retries=1).ask("/x", bodies(1), value) == [0]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\x00" * 100, b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    ],
)  # fmt: skip
def test_f5_what_is_no_http_is_a_failure(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert one_failure(lambda _: Reply(raw, fault="raw")).kind == "connection"
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize(
    "raw",
    [
        b'HTTP/1.1 200 OK\r\n\r\n{"value": 1}',
        b'HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n{"value": 1}',
        b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"value": 1}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"val\r\n7\r\nue": 1}\r\n0\r\n\r\n',
    ],
)
def test_bodies_without_a_length_are_read_to_their_end(raw: bytes) -> None:
    with StubServer(lambda _: Reply(raw, fault="raw")) as server:
        assert endpoint(server, max_concurrency=1).ask("/x", bodies(3), value) == [1, 1, 1]


def test_connections_are_kept_and_one_that_the_server_closed_is_replaced() -> None:
    with StubServer(echo) as server:
        asked = endpoint(server, max_concurrency=4)
        for _ in range(3):
            asked.ask("/x", bodies(20), value)
        assert server.num_connections <= 4
        for connection in list(server.open):
            server._loop.call_soon_threadsafe(connection.transport.close)
        time.sleep(0.1)
        assert asked.ask("/x", bodies(20), value) == list(range(20))
        assert asked.stats.num_retries == 0


def test_the_connections_of_an_endpoint_that_nobody_has_are_closed() -> None:
    with StubServer(echo) as server:
        asked = endpoint(server, max_concurrency=4)
        asked.ask("/x", bodies(20), value)
        assert server.open
        del asked
        end = time.monotonic() + 5
        while server.open and time.monotonic() < end:
            time.sleep(0.02)
        assert not server.open


def test_f9_works_inside_a_running_event_loop() -> None:
    async def asks() -> list[Any]:
        inside = asked.ask("/x", bodies(5), value)
        return [inside, await asyncio.to_thread(asked.ask, "/x", bodies(5), value)]

    with StubServer(echo) as server:
        asked = endpoint(server)
        assert asyncio.run(asks()) == [list(range(5))] * 2


def test_f46_the_bound_holds_over_all_threads_and_is_shared_by_the_processes() -> None:
    with StubServer(lambda r: Reply({"value": r.json["i"]}, delay=0.02)) as server:
        asked = Endpoint(EndpointConfig(server.url, max_concurrency=14), num_processes=2)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: asked.ask("/x", bodies(30), value), range(4)))
    assert found == [list(range(30))] * 4
    assert server.most_at_once == 7
    assert Endpoint(EndpointConfig(server.url, max_concurrency=4), num_processes=64).num_at_once == 1


# What is registered first is called last, after the endpoints' own.
HEAD = """
import atexit, os, sys, threading
def look():
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and thread.name.startswith("rl-think"):
            print(f"{thread.name} still runs", file=sys.stderr)
atexit.register(look)
from rl_think_ext.scoring.endpoint import Endpoint, EndpointConfig
def value(reply): return reply["value"]
"""


@contextmanager
def script(text: str, server: StubServer, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A Python of its own, which tells on standard error what is left open at exit; none of it is left at the end."""
    path = tmp_path / "script.py"
    path.write_text(HEAD + f"URL = {server.url!r}\n" + textwrap.dedent(text))
    command = [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", str(path)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run_script(text: str, server: StubServer, tmp_path: Path) -> tuple[str, str]:
    """What a script writes."""
    with script(text, server, tmp_path) as process:
        return process.communicate(timeout=15)


def test_f9_a_forked_child_and_its_parent_both_go_on(tmp_path: Path) -> None:
    text = """
    endpoint = Endpoint(EndpointConfig(URL))
    assert endpoint.ask("/x", [{"i": 1}], value) == [1]
    child = os.fork()
    assert endpoint.ask("/x", [{"i": 2}, {"i": 3}], value) == [2, 3]
    if child:
        assert os.waitpid(child, 0)[1] == 0
        assert endpoint.ask("/x", [{"i": 4}], value) == [4]
        print("done")
    """
    with StubServer(echo) as server:
        out, err = run_script(text, server, tmp_path)
    # The child never closes what is its parent's, and says so under -X dev.
    assert out == "done\n" and "Traceback" not in err and "Error" not in err


def test_f10_pickled_into_a_spawned_child(tmp_path: Path) -> None:
    text = """
    import multiprocessing
    def child(endpoint, results): results.put(endpoint.ask("/x", [{"i": 2}, {"i": 3}], value))
    if __name__ == "__main__":
        endpoint, context = Endpoint(EndpointConfig(URL)), multiprocessing.get_context("spawn")
        endpoint.ask("/x", [{"i": 1}], value)
        results = context.SimpleQueue()
        process = context.Process(target=child, args=(endpoint, results))
        process.start()
        print(results.get(), endpoint.ask("/x", [{"i": 4}], value))
        process.join()
        assert process.exitcode == 0
    """
    with StubServer(echo) as server:
        out, err = run_script(text, server, tmp_path)
    assert out == "[2, 3] [4]\n" and not err


def test_f9_nothing_is_left_behind_at_exit(tmp_path: Path) -> None:
    text = """
    endpoint = Endpoint(EndpointConfig(URL))
    assert endpoint.ask("/x", [{"i": 1}, {"i": 2}], value) == [1, 2]
    hung = Endpoint(EndpointConfig(URL))
    threading.Thread(target=hung.ask, args=("/x", [{"i": -1}], value), daemon=True).start()
    import time; time.sleep(0.3)
    print("done")
    """
    with StubServer(lambda r: Reply(fault="hang") if r.json["i"] < 0 else echo(r)) as server:
        out, err = run_script(text, server, tmp_path)
    assert (out, err) == ("done\n", "")


def test_an_interrupt_drops_what_is_under_way(tmp_path: Path) -> None:
    # A process of a shell's background inherits that interrupts are ignored.
    text = """
    import signal

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Endpoint(EndpointConfig(URL)).ask("/x", [{"i": 1}], value)
    except KeyboardInterrupt:
        print("interrupted")
    """
    with StubServer(lambda _: Reply(fault="hang")) as server, script(text, server, tmp_path) as process:
        while not server.requests:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)
    assert (out, err) == ("interrupted\n", "")


def test_f39_secrets_are_in_no_text(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SERVER_KEY", KEY)
    with StubServer(lambda r: Reply({"error": f"{KEY} {PASSWORD} {QUERY}"}, 500)) as server:
        url = f"http://me:{PASSWORD}@127.0.0.1:{server.port}/v1?{QUERY}"
        asked = endpoint(url, api_key_env="SERVER_KEY", retries=1)
        found = asked.ask("/v1/x", bodies(2), value)
    told = [repr(asked), repr(asked.config), str(asked.config), repr(found), repr(asked.stats), caplog.text]
    told += [repr(vars(record)) for record in caplog.records]
    assert not any(secret in text for text in told for secret in (KEY, PASSWORD, "q-secret"))
    assert KEY.encode() not in pickle.dumps(asked)
    # Both go to the server, and /v1 once.
    assert server.requests[0].path == f"/v1/x?{QUERY}"
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "2 of 2 failed (http 500); 2 tries were repeated (http 500)" in caplog.text


def test_f39_a_password_goes_to_the_server_as_such() -> None:
    with StubServer(echo) as server:
        assert endpoint(f"http://me:p%40ss@127.0.0.1:{server.port}").ask("/x", bodies(1), value) == [0]
    assert server.requests[0].headers["authorization"] == "Basic bWU6cEBzcw=="


@pytest.mark.parametrize("key", [None, "", "  \n", f"{KEY} {KEY}", "ключ"])
def test_f39_a_key_that_no_header_can_carry_is_not_shown(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVER_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SERVER_KEY", key)
    with pytest.raises(UserError, match="SERVER_KEY") as caught:
        endpoint("http://127.0.0.1:1", api_key_env="SERVER_KEY")
    assert KEY not in str(caught.value) and "ключ" not in str(caught.value)


def test_f42_only_the_settings_say_where_requests_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with StubServer(echo) as elsewhere:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere.url)
        with StubServer(echo) as server:
            body = {"i": 1, "url": elsewhere.url, "server": elsewhere.url, "base_url": elsewhere.url}
            assert endpoint(server).ask("/x", [body], value) == [1]
        with (
            StubServer(lambda _: Reply(status=307, headers={"Location": f"{elsewhere.url}/x"})) as server,
            pytest.raises(UserError, match="moved to"),
        ):
            endpoint(server).ask("/x", bodies(1), value)
    assert not elsewhere.requests


@pytest.mark.parametrize("jump", [1e6, -1e6])
def test_f45_deadlines_do_not_follow_a_clock_that_jumps(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.time
    with StubServer(lambda r: Reply({"value": r.json["i"]}, delay=0.3 * r.json["i"])) as server:
        asked = endpoint(server, deadline=0.8)
        begin = time.monotonic()
        told = lambda *_: monkeypatch.setattr(time, "time", lambda: clock() + jump)  # noqa: E731
        found = asked.ask("/x", bodies(5), value, on_reply=told)
        assert 0.8 <= time.monotonic() - begin < 2
    assert found[:2] == [0, 1] and isinstance(found[4], Failure)


def test_a_certificate_is_checked_against_the_companys_own_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubServer(echo, tls=certified(tmp_path)) as server:
        url = server.url.replace("http:", "https:")
        (found,) = endpoint(url).ask("/x", bodies(1), value)
        assert isinstance(found, Failure) and "CERTIFICATE_VERIFY_FAILED" in found.reason
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert endpoint(url).ask("/x", bodies(20), value) == list(range(20))


def certified(folder: Path) -> ssl.SSLContext:
    """For a server, with a certificate of its own making for 127.0.0.1 in the folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stub")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (folder / "certificate.pem").write_bytes(certificate)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


def test_an_error_of_the_callers_own_ends_the_call() -> None:
    def stop(index: int, result: Any) -> None:
        raise RuntimeError("disk full")

    with StubServer(echo) as server:
        asked = endpoint(server)
        with pytest.raises(RuntimeError, match="disk full"):
            asked.ask("/x", bodies(5), value, on_reply=stop)
        with pytest.raises(TypeError, match="not JSON serializable"):
            asked.ask("/x", [{"i": object()}], value)
        assert asked.ask("/x", bodies(5), value) == list(range(5))


def test_f28_text_of_any_kind_arrives_as_it_is() -> None:
    texts = ["{}%$ {{x}} {% if %}", "a\x00b\r\n\r\nHTTP/1.1 200 OK", "\ud800 lone", "שלום \u202e é 🙂" * 1000]
    with StubServer(lambda r: Reply({"value": r.json["text"]})) as server:
        assert endpoint(server).ask("/x", [{"text": text} for text in texts], value) == texts


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "localhost:8000"}, "looks like http"), ({"url": "ftp://host"}, "looks like http"),
        ({"url": "http://me:pass word@host"}, "looks like http"), ({"url": "http://host:99999"}, "looks like http"),
        ({"url": ""}, "looks like http"), ({"url": "http://"}, "looks like http"), ({"timeout": 0.0}, "`timeout`"),
        ({"deadline": float("nan")}, "`deadline`"), ({"max_concurrency": 0}, "`max_concurrency`"),
        ({"retries": -1}, "`retries`"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        EndpointConfig(**({"url": "http://host"} | changes))
    assert "pass" not in str(caught.value)


def test_latencies_are_those_of_the_good_tries() -> None:
    with StubServer(lambda r: Reply({"value": 1}, delay=0.1 * r.json["i"])) as server:
        asked = endpoint(server)
        asked.ask("/x", bodies(4), value)
    assert 0.1 <= asked.stats.latency(0.5) < 0.3 <= asked.stats.latency(0.95) <= asked.stats.seconds
    assert asked.stats.num_asked == 4
    assert str(Stats().latency(0.5)) == "nan"
