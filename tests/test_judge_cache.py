"""The file of verdicts: kept across processes and runs, refused where it is none of ours, left out where it fails."""

from __future__ import annotations

import logging
import os
import pickle
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from judges import answer, config, honest, prompt_of, quotes, served
from stub_server import Reply, Request, StubServer

from rl_think_ext.errors import UserError
from rl_think_ext.records import Score
from rl_think_ext.scoring import judge_cache
from rl_think_ext.scoring.judge import Pair, load_judge
from rl_think_ext.scoring.judge_cache import VerdictCache, verdict_key
from rl_think_ext.scoring.judge_served import KEPT_AT_ONCE

PAIRS = [Pair(f"Number {i} is next. Then comes another.", f"Number {i} is next.") for i in range(300)]


def key(i: int) -> bytes:
    return verdict_key("judge", f"reference {i}", "prediction")


def stored(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        return int(connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])


def test_verdicts_are_there_in_the_next_run(tmp_path: Path) -> None:
    file = str(tmp_path / "verdicts.sqlite")
    with StubServer(honest) as server:
        first = served(server, cache_file=file)(PAIRS)
        again = served(server, cache_file=file)
        assert again(PAIRS) == first and len(server.requests) == len(PAIRS)
        assert (again.stats["num_asked"], again.stats["num_cached"]) == (0, len(PAIRS))


@pytest.mark.parametrize(
    "change",
    [
        {"judge_model": "other"}, {"reward": "strict"}, {"judge_temperature": 0.5}, {"judge_max_tokens": 32},
        {"judge_thinking": False}, {"judge_prompt": "own.txt"},
    ],
    ids=str,
)  # fmt: skip
def test_another_judge_has_its_own_verdicts(
    tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = "{boundary}\n{reference}\n{boundary}\n{prediction}\n{boundary}\nScore: 0 or Score: 1?"
    Path("own.txt").write_text(own)
    with StubServer(lambda _: answer("Score: 1")) as server:
        served(server, cache_file="verdicts.sqlite")(PAIRS[:3])
        other = served(server, cache_file="verdicts.sqlite", **change)
        other(PAIRS[:3])
        assert other.stats["num_asked"] == 3
        if change == {"judge_prompt": "own.txt"}:
            Path("own.txt").write_text(own + " ")
            reworded = served(server, cache_file="verdicts.sqlite", **change)
            reworded(PAIRS[:3])
            assert reworded.stats["num_asked"] == 3


def test_the_same_judge_at_another_address_is_the_same_judge(tmp_path: Path) -> None:
    file = str(tmp_path / "verdicts.sqlite")
    with StubServer(honest) as server:
        served(server, cache_file=file)(PAIRS[:3])
    with StubServer(honest) as other:
        assert served(other, cache_file=file, max_concurrency=3, timeout=1.0)(PAIRS[:3]) == [Score(1.0)] * 3
    assert not other.requests


def test_f8_what_has_no_verdict_is_never_kept(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sqlite"
    replies = [Reply(status=500), answer("Perhaps."), answer(None), answer("Score: 1", "length"), Reply(b"<html>")]
    with StubServer(lambda r: replies[r.number % 5] if r.number < 10 else honest(r)) as server:
        judge = served(server, cache_file=str(file), max_concurrency=1)
        for _ in range(2):
            assert [score.value for score in judge(PAIRS[:5])] == [None] * 5
        assert stored(file) == 0
        assert [score.value for score in judge(PAIRS[:5])] == [1.0] * 5
    assert stored(file) == 5


def test_texts_are_kept_raw_and_told_apart(tmp_path: Path) -> None:
    cache = VerdictCache(10, str(tmp_path / "verdicts.sqlite"))
    keys = [
        verdict_key("j", "a<b", "c"),
        verdict_key("j", "a< b", "c"),
        verdict_key("j", "a<bc", ""),
        verdict_key("j", "\ud800", "c"),
    ]
    assert len(set(keys)) == 4 and cache.look(keys) == {}


def test_a_killed_run_loses_a_few_verdicts_at_most(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sqlite"

    def act(request: Request) -> Reply:
        return Reply(fault="hang") if quotes(prompt_of(request)) in PAIRS[200:] else honest(request)

    with StubServer(act) as server:
        child = """
            import sys
            from judges import served
            from test_judge_cache import PAIRS
            served(sys.argv[1], cache_file=sys.argv[2], timeout=60.0, deadline=60.0)(PAIRS)
        """
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-c", textwrap.dedent(child), server.url, str(file)]
        process = subprocess.Popen(command, env=environment)
        while len(server.requests) < 264:
            assert process.poll() is None
        end = time.monotonic() + 20
        while not file.exists() or stored(file) < 192:
            assert process.poll() is None and time.monotonic() < end
        process.kill()
        process.wait()
    assert 200 - KEPT_AT_ONCE <= stored(file) <= 200
    with StubServer(honest) as server:
        judge = served(server, cache_file=str(file))
        assert {score.value for score in judge(PAIRS)} == {1.0}
        assert len(server.requests) == len(PAIRS) - judge.stats["num_cached"] <= 100 + KEPT_AT_ONCE


@pytest.mark.slow
def test_several_processes_write_at_once(tmp_path: Path) -> None:
    child = """
        import sys, logging
        from rl_think_ext.scoring.judge_cache import VerdictCache, verdict_key
        logging.basicConfig()
        cache = VerdictCache(0, sys.argv[1])
        for start in range(0, 1000, 50):
            keys = [verdict_key("judge", str(i), "") for i in range(start, start + 60)]
            known = cache.look(keys)
            cache.keep({key: 1 for key in keys if key not in known})
        assert len(cache.look([verdict_key("judge", str(i), "") for i in range(1000)])) == 1000
    """
    file = tmp_path / "verdicts.sqlite"
    command = [sys.executable, "-c", textwrap.dedent(child), str(file)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 6 and said == [""] * 6
    assert stored(file) == 1010


def test_threads_write_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = VerdictCache(50, str(tmp_path / "verdicts.sqlite"))

    def work(i: int) -> None:
        for k in range(20):
            cache.keep({key(100 * i + k): k % 2})
            cache.look([key(100 * i + k), key(k)])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(tmp_path / "verdicts.sqlite") == 80 and len(cache) == 50 and not caplog.records


def test_the_first_verdict_stays_for_all(tmp_path: Path) -> None:
    file = str(tmp_path / "verdicts.sqlite")
    one, other = VerdictCache(0, file), VerdictCache(0, file)
    one.keep({key(1): 1})
    other.keep({key(1): 0})
    assert one.look([key(1)]) == other.look([key(1)]) == {key(1): 1}


def test_more_keys_than_a_query_takes(tmp_path: Path) -> None:
    cache = VerdictCache(0, str(tmp_path / "verdicts.sqlite"))
    cache.keep({key(i): i % 2 for i in range(1203)})
    assert cache.look([key(i) for i in range(1300)]) == {key(i): i % 2 for i in range(1203)}


def test_a_pickled_cache_uses_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = VerdictCache(10, "verdicts.sqlite")
    cache.keep({key(1): 1})
    monkeypatch.chdir("/")  # where another process may stand
    again = pickle.loads(pickle.dumps(cache))  # noqa: S301
    again.keep({key(2): 0})
    assert stored(tmp_path / "verdicts.sqlite") == 2


def damage(path: Path, what: str) -> None:
    if what == "another program's":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE notes (text)")
    elif what == "not a database":
        path.write_bytes(b"verdicts, one a line\n" * 100)
    elif what == "malformed":
        VerdictCache(0, str(path)).keep({key(i): 1 for i in range(5000)})
        content = bytearray(path.read_bytes())
        content[100:4096] = b"\xff" * 3996
        path.write_bytes(content)
    elif what == "unable to open":
        path.mkdir()


@pytest.mark.parametrize("what", ["another program's", "not a database", "malformed", "unable to open"])
def test_a_file_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path, what: str) -> None:
    file = tmp_path / "verdicts.sqlite"
    damage(file, what)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(UserError, match=f"`cache_file`: {file} cannot be used: .*{what}"):
        load_judge(config("http://host:8000", cache_file=str(file)))
    assert before is None or file.read_bytes() == before


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no/such/verdicts\.sqlite cannot be used: unable to open"):
        load_judge(config("http://host:8000", cache_file=str(tmp_path / "no/such/verdicts.sqlite")))


def test_a_file_that_may_only_be_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sqlite"
    VerdictCache(0, str(file)).keep({key(1): 1})
    child = """
        import os, sys
        from rl_think_ext.errors import UserError
        from rl_think_ext.scoring.judge_cache import VerdictCache
        if os.geteuid() == 0:
            os.setuid(65534)  # whom file modes bind
        try:
            VerdictCache(0, sys.argv[1])
        except UserError as error:
            print(error)
    """
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    file.chmod(0o444)
    command = [sys.executable, "-c", textwrap.dedent(child), str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "readonly database" in done.stdout, done.stderr


def test_a_file_that_is_locked_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(judge_cache, "SECONDS_TO_WAIT", 0.05)
    file = tmp_path / "verdicts.sqlite"
    with StubServer(honest) as server:
        judge = served(server, cache_file=str(file))
        with sqlite3.connect(file, isolation_level=None) as other:
            other.execute("PRAGMA locking_mode=EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            late = served(server, cache_file=str(file))
            for found in (judge, late):
                assert [score.value for score in found(PAIRS[:2])] == [1.0, 1.0]
            assert {record.message.partition(": ")[2] for record in caplog.records} == {
                "database is locked; it is left out this time"
            }
            other.execute("COMMIT")
        other.close()
        judge(PAIRS[2:4])
    assert stored(file) == 2


def test_a_file_that_fails_in_a_run_is_given_up_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "verdicts.sqlite"
    with StubServer(honest) as server:
        judge = served(server, cache_file=str(file))
        judge(PAIRS[:2])
        file.unlink()
        with caplog.at_level(logging.WARNING):
            for i in range(2, 6):
                assert [score.value for score in judge(PAIRS[i : i + 2])] == [1.0, 1.0]
    assert [record.message.rpartition("; ")[2] for record in caplog.records] == [
        "it is not used any more in this process"
    ]
    assert not file.exists()


def test_a_verdict_that_is_none_in_the_file_is_asked_anew(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sqlite"
    cache = VerdictCache(0, str(file))
    with sqlite3.connect(file) as connection:
        connection.execute("INSERT INTO verdicts VALUES (?, 7)", [key(1)])
    assert cache.look([key(1)]) == {}


def test_growth_is_as_the_page_says(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sqlite"
    VerdictCache(0, str(file)).keep({key(i): i % 2 for i in range(20000)})
    assert file.stat().st_size / 20000 <= 45
