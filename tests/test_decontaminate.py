"""Nothing of a benchmark is trained on: what is found, what is not, and files that cannot be read."""

from __future__ import annotations

import json
import pickle
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl_think_ext.data.decontaminate import Benchmark, Decontamination
from rl_think_ext.errors import UserError

MATH = Path(__file__).parents[2] / "shared/data/math_text.jsonl"
LONG = (
    "A farmer walks from the northern gate to the old mill, counts 17 sheep on his way, loses three of them in the "
    "fog and sells half of the rest: how many sheep does he bring home in the evening?"
)
SHORT = "How many primes lie below 100?"


def rows(path: Path, *texts: object, column: str = "question") -> str:
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def filter_(tmp_path: Path) -> Decontamination:
    long, short = rows(tmp_path / "long.jsonl", LONG), rows(tmp_path / "short.jsonl", SHORT, "42", "", None)
    return Decontamination([Benchmark("long", long), Benchmark("short", short)])


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        f"On a forum somebody asked: {LONG.upper()} Nobody knew.",
        "and COUNTS  17 sheep,\non his way -- loses three of them",  # ten words, written in another way
        "Ａ farmer walks from the northern gate to the old...",
        "a far\u00admer walks from the north\u200bern gate to the old",  # as it is copied out of a PDF file
    ],
)
def test_a_run_of_ten_words_is_found_in_any_form(filter_: Decontamination, text: str) -> None:
    assert filter_(text) == "long"


@pytest.mark.parametrize(
    "text",
    [
        "farmer walks from the northern gate to the old",  # nine words of it
        "a farmer walks from the northern gate to the new mill",
        "How many primes lie below 1000?",
        "how many PRIMES are there below 100",
        "The answer is 42.",
        "",
        "...",
    ],
)
def test_what_is_no_piece_passes(filter_: Decontamination, text: str) -> None:
    assert filter_(text) is None


def test_a_short_question_is_found_whole(filter_: Decontamination) -> None:
    assert filter_("She asked me: how many primes lie below 100, and I said 25.") == "short"
    assert filter_("how many primes lie below") is None
    facts = filter_.report()[1]
    assert (facts["texts"], facts["too_short"], facts["runs"]) == (2, 1, 1)


def test_short_questions_of_every_length(tmp_path: Path) -> None:
    """A question of n words is found where it stands whole, for each n from the least one to a run and beyond."""
    everything = "one two three four five six seven eight nine ten eleven twelve".split()
    for n in range(5, 13):
        path = rows(tmp_path / f"{n}.jsonl", " ".join(everything[:n]), "another question of six words")
        check = Decontamination([Benchmark("b", path)])
        assert check(f"before {' '.join(everything[:n])} behind") == "b"
        assert check(" ".join(everything[: min(n, 10) - 1])) is None
        assert (check(" ".join(everything[: n - 1])) == "b") is (n > 10)


def test_the_first_benchmark_is_named_and_hits_are_counted(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", LONG)
    other = rows(tmp_path / "b.jsonl", LONG, SHORT + " Give all of them, please, in one line, now.")
    check = Decontamination([Benchmark("first", path), Benchmark("second", other)])
    texts = [LONG, LONG, "Give all of them, please, in one line, now. How many primes lie below 100", "clean"]
    assert [check(text) for text in texts] == ["first", "first", None, None]
    assert check(f"{SHORT} give all of them please in one line") == "second"
    assert [(facts["benchmark"], facts["hits"]) for facts in check.report()] == [("first", 2), ("second", 1)]
    assert [facts["hits"] for facts in check.report(Counter(first=7))] == [7, 0]


def test_all_forms_of_files_give_the_same(tmp_path: Path) -> None:
    table = {"question": [LONG, SHORT], "answer": ["11", "The primes that lie below one hundred are twenty five"]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True))
    )
    quoted = "\r\n".join(",".join(f'"{cell}"' for cell in row) for row in zip(*table.values(), strict=True))
    (tmp_path / "b.csv").write_text("\ufeffquestion,answer\r\n" + quoted)
    (tmp_path / "b.txt").write_text("\n\n".join([*table["question"], *table["answer"]]))
    reports = []
    for name in ("b.jsonl", "b.parquet", "b.csv", "b.txt"):
        check = Decontamination([Benchmark("b", str(tmp_path / name), ("question", "answer"))])
        assert check(LONG) == check("the primes that lie below ONE HUNDRED are twenty five") == "b"
        facts = check.report()[0]
        reports.append((facts["texts"], facts["too_short"], facts["runs"]))
    assert set(reports) == {(4, 1, reports[0][2])}


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("b.jsonl", '{"prompt": "x"}\n', ("question",), "row 1 of b.jsonl has no column `question`"),
        ("b.jsonl", '{"questions": "x"}\n', ("question",), "Did you mean `questions`"),
        ("b.csv", "q,a\n1,2\n", ("question",), "b.csv has no column `question`; there are `q`, `a`"),
        ("b.csv", "", ("question",), "there are none"),
        ("b.jsonl", '{"question": "a b c d e f"}\n{bad\n', ("question",), "row 2 of b.jsonl.*corrupt row"),
        ("b.jsonl", '{"question": 3}\n', ("question",), "row 1 of b.jsonl, column `question`: not a string"),
        ("b.jsonl", '{"question": "42"}\n', ("question",), "no text of 5 words or more in `question`"),
        ("b.txt", "\n", ("question",), "no text of 5 words or more$"),
        (
            "b.csv",
            "id,question\n1,a b c d e f\n2\n",
            ("question",),
            "row 2 of b.csv has fewer cells than the 2 columns",
        ),
        ("b.csv", "id,question\n1,a b c d e f, and g h\n", ("question",), "row 1 of b.csv has more cells than the 2"),
        ("b.xml", "<a/>", ("question",), "b.xml is no .jsonl, .parquet, .csv, .txt file"),
        ("b.parquet", "no parquet", ("question",), "could not read b.parquet"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: str, columns: tuple[str, ...], message: str
) -> None:
    """F34: a row that is passed over would be trained on, so that one is enough to stop."""
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"benchmark gsm: .*{message}"):
        Decontamination([Benchmark("gsm", str(tmp_path / name), columns)])


def test_a_line_of_a_text_file_is_one_text_whatever_stands_in_it(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes("How many primes\u2028lie below 100?\r\n".encode())
    assert Decontamination([Benchmark("b", str(tmp_path / "b.txt"))])(SHORT) == "b"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (str(tmp_path / "no.jsonl"), str(tmp_path / "no.csv"), "../../etc/no", "a\0b", "https://a/b.jsonl", ""):
        with pytest.raises(UserError, match="benchmark gsm: "):
            Decontamination([Benchmark("gsm", path)])
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"benchmark gsm: could not read b\.txt"):
        Decontamination([Benchmark("gsm", str(tmp_path / "b.txt"))])


@pytest.mark.parametrize("name", ["", "../gsm", "a/b", "a\nb", ".gsm", "x" * 200, "gsm\0"])
def test_names_are_plain(name: str) -> None:
    """F41: a name stands in cards and reports."""
    with pytest.raises(UserError, match="a benchmark's name is letters"):
        Benchmark(name, "b.jsonl")


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UserError, match="list of names"):
        Benchmark("gsm", "b.jsonl", "question")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="list of names"):
        Benchmark("gsm", "b.jsonl", ())
    with pytest.raises(UserError, match="one name"):
        Decontamination([Benchmark("gsm", "a.jsonl"), Benchmark("gsm", "b.jsonl")])
    for ngram, least in ((4, 5), (3, 0)):
        with pytest.raises(UserError, match="min_words"):
            Decontamination([], ngram=ngram, min_words=least)
    assert Decontamination([])("anything at all") is None


def test_worker_processes_find_the_same(filter_: Decontamination) -> None:
    copy = pickle.loads(pickle.dumps(filter_))  # noqa: S301
    assert [copy(text) for text in (LONG, SHORT, "clean")] == ["long", "short", None]


def test_hostile_text_takes_linear_time(filter_: Decontamination) -> None:
    """F29: a megabyte that begins a short question again and again."""
    spent = {}
    for size in (200_000, 800_000):
        text = "how many primes lie below " * (size // 26)
        start = time.process_time()
        assert filter_(text) is None
        spent[size] = time.process_time() - start
    assert spent[800_000] < 5


def test_real_text_loses_nothing_but_the_benchmark(tmp_path: Path) -> None:
    """Half of the problems as a benchmark: all of their texts are found, and none of the other half's."""
    if not MATH.exists():
        pytest.skip(f"absent: {MATH.name} is not shipped")
    given = [json.loads(line) for line in MATH.read_text().splitlines()]
    path = rows(tmp_path / "half.jsonl", *(row["problem"] for row in given[:125]))
    check = Decontamination([Benchmark("math", path)])
    assert [check(row["text"]) for row in given] == ["math"] * 125 + [None] * 125
