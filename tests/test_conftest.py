"""The rules of conftest.py, each in a pytest of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SKIPS = """
    import pytest

    @pytest.mark.skip(reason="absent: ../shared/data")
    def test_data(): ...

    @pytest.mark.skipif(True, reason="gpu: none here")
    def test_gpu(): ...

    @pytest.mark.xfail(strict=True)
    def test_known():
        raise AssertionError

    def test_body():
        pytest.skip("later")

    @pytest.mark.skip(reason="flaky")
    def test_mark(): ...
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers = slow: slow")
    monkeypatch.delenv("CI", raising=False)
    return pytester


def run(inner: pytest.Pytester) -> pytest.RunResult:
    return inner.runpytest_subprocess("-p", "no:hypothesispytest", "-ra")


def test_skips_pass_outside_ci(inner: pytest.Pytester) -> None:
    inner.makepyfile(SKIPS)
    run(inner).assert_outcomes(skipped=4, xfailed=1)


def test_ci_refuses_a_skip_without_an_allowed_reason(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    inner.makepyfile(SKIPS)
    result = run(inner)
    result.assert_outcomes(skipped=2, xfailed=1, failed=1, errors=1)  # a mark skips in the set-up: an error
    result.stdout.fnmatch_lines_random(["*skipped in CI: 'later'*", "*skipped in CI: 'flaky'*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_ci_refuses_a_module_that_skips_itself(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    inner.makepyfile("import pytest\npytest.importorskip('no_such_module')\ndef test(): ...")
    result = run(inner)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*skipped in CI: *no_such_module*"])


def test_ci_lets_a_module_go_whose_data_is_absent(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    inner.makepyfile("import pytest\npytest.skip('absent: ../shared', allow_module_level=True)")
    run(inner).assert_outcomes(skipped=1)


def test_the_network_is_blocked_unless_slow(inner: pytest.Pytester) -> None:
    inner.makepyfile("""
        import asyncio, errno, socket, urllib.request
        import pytest

        def refused(error): return type(error).__name__ == "NetworkBlockedError"

        def test_address():
            with socket.socket() as sock, pytest.raises(RuntimeError, match="192.0.2.1:9.*offline") as caught:
                sock.connect(("192.0.2.1", 9))
            assert refused(caught.value)

        def test_name():
            with pytest.raises(RuntimeError, match="example.org") as caught:
                urllib.request.urlopen("http://example.org", timeout=1)
            assert refused(caught.value)

        def test_asyncio():
            with pytest.raises(RuntimeError, match="example.org"):
                asyncio.run(asyncio.open_connection("example.org", 80))

        def test_own_address_is_not_there():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(OSError) as caught:
                sock.connect(("192.0.2.1", 9))
            assert caught.value.errno == errno.ENETUNREACH

        def test_a_name_that_never_resolves():
            with pytest.raises(socket.gaierror):
                socket.create_connection(("judge.invalid", 80))

        def test_loopback():
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()

        @pytest.mark.slow
        def test_slow():
            assert socket.socket.connect.__name__ == "connect"
    """)
    run(inner).assert_outcomes(passed=7)


def test_a_module_cannot_reach_the_network_while_it_is_collected(inner: pytest.Pytester) -> None:
    inner.makepyfile("import socket\nsocket.create_connection(('192.0.2.1', 9), timeout=1)\ndef test(): ...")
    result = run(inner)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*NetworkBlockedError*offline*"])
