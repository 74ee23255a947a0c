"""Documents out of files, folders and `datasets`: what is read, skipped and refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl_think_ext.data.sources import Tally, read_documents
from rl_think_ext.errors import UserError


def write_jsonl(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def documents(source, **kwargs):
    tally = Tally()
    return list(read_documents(str(source), tally=tally, **kwargs)), dict(tally.skipped)


def test_reads_text_jsonl_parquet_and_folders_of_them(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntext")
    write_jsonl(folder / "b.jsonl", [{"id": 7, "text": "two"}, "\n", {"text": "three"}])
    pq.write_table(pa.table({"text": ["four"], "id": ["x"], "other": [1]}), folder / "c.parquet")
    (folder / ".hidden.txt").write_text("not read")
    found, skipped = documents(folder)
    assert [(d.id, d.text, d.source) for d in found] == [
        ("b.jsonl:7", "two", "b.jsonl"),
        ("b.jsonl:2", "three", "b.jsonl"),
        ("c.parquet:x", "four", "c.parquet"),
        ("deep/a.txt", "one\r\ntext", "deep/a.txt"),
    ]
    assert not skipped
    assert [d.id for d in documents(folder / "deep" / "a.txt")[0]] == ["a.txt"]
    assert [d.id for d in documents(folder / "b.jsonl")[0]] == ["7", "b.jsonl:2"]


def test_reads_a_saved_dataset_and_a_folder_of_another_format(tmp_path, monkeypatch):
    from datasets import Dataset, DatasetDict, config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    DatasetDict(train=Dataset.from_dict({"text": ["one", "two"]})).save_to_disk(tmp_path / "saved")
    assert [(d.id, d.text) for d in documents(tmp_path / "saved")[0]] == [("train:1", "one"), ("train:2", "two")]
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text("text,id\nhello,a\nworld,b\n")
    assert [(d.id, d.text) for d in documents(tmp_path / "csv")[0]] == [("a", "hello"), ("b", "world")]


def test_f34_unusable_rows_are_skipped_and_counted(tmp_path):
    bad = ["{not json\n", "[1]\n", {"text": ""}, {"text": None}, {"text": "\ud800"}, {"text": "x" * 10_000_001}]
    bad += ["[" * 100_000 + "\n", {"other": 1}, {"id": "g0", "text": "again"}]
    good = [{"id": f"g{i}", "text": f"text {i}"} for i in range(60)]
    found, skipped = documents(write_jsonl(tmp_path / "in.jsonl", [*good, *bad]))
    assert len(found) == 60
    assert skipped == {
        "corrupt row": 2,
        "no JSON object": 1,
        "empty text": 1,
        "not a string": 1,
        "lone surrogate": 1,
        "larger than 10 MB": 1,
        "column missing": 1,
        "duplicate id": 1,
    }


def test_f34_too_many_unusable_rows_raise_and_name_the_place(tmp_path):
    rows = [{"text": "good"}, {"text": 3}, *[{"text": "good"}] * 13, *[{"text": ""}] * 5]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    with pytest.raises(UserError, match=r"6 of 20 rows .*row 2 of in\.jsonl, column `text`: not a string"):
        documents(source)
    assert len(documents(source, max_skipped_share=0.3)[0]) == 14
    # Under 20 rows a share says nothing.
    assert len(documents(write_jsonl(tmp_path / "few.jsonl", rows[:2]))[0]) == 1


def test_f33_a_missing_column_names_file_row_column_and_what_is_there(tmp_path):
    message = r"row 1 of in\.jsonl has no column `text`; there are `id`, `texts`. Did you mean `texts`\?"
    with pytest.raises(UserError, match=message):
        documents(write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "texts": "a"}]))
    pq.write_table(pa.table({"text": [1, 2], "body": ["a", "b"]}), tmp_path / "in.parquet")
    with pytest.raises(UserError, match=r"column `text` of in\.parquet holds int64"):
        documents(tmp_path / "in.parquet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.jsonl", b"", "no document in .*it is empty"),
        ("empty.txt", b"", "no document in .*it is empty"),
        ("blank.txt", b" \n", "all 1 rows cannot be used.*empty text"),
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("broken.parquet", b"PAR1 no", r"could not read broken\.parquet"),
        ("model.pkl", b"\x80\x04N.", r"model\.pkl is no .txt, .jsonl, .parquet file"),
    ],
)
def test_files_that_hold_nothing_usable(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        documents(tmp_path / name)


@pytest.mark.parametrize("source", ["no/such/file.txt", "none.jsonl", "/no/where", "../../x/y", "a/../b", "~x", "-x"])
def test_f41_unknown_and_traversing_names_are_refused(source):
    with pytest.raises(UserError, match="there is no file or folder"):
        documents(source)


def test_names_that_datasets_cannot_find_and_addresses(tmp_path):
    with pytest.raises(UserError, match="could not read `nobody/nothing-here`"):
        documents("nobody/nothing-here")
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="the folder void is empty"):
        documents(tmp_path / "void")
    with pytest.raises(UserError, match="not an address") as caught:
        documents("https://user:secret@host/file.txt")
    assert "secret" not in str(caught.value)
