"""The folder of a build: whole or not at all, loadable by `datasets`, with an honest card; and the command."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import rl_think_ext.tiny
from rl_think_ext.cli import main
from rl_think_ext.data.card import Card, whole_folder
from rl_think_ext.data.rlp import RLPDataConfig, build
from rl_think_ext.errors import UserError

TEXT = "The first sentence stands here at the start. Dr. Smith wrote the second one. A third follows it, i.e. this."


def write_jsonl(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(folder, split="train"):
    return pq.read_table(Path(folder) / f"{split}.parquet").to_pylist()


@pytest.fixture(scope="module")
def tokenizer_folder():
    return str(Path(rl_think_ext.tiny.__file__).parent / "text_tokenizer")


def test_load_dataset_reads_the_folder_with_its_splits(tmp_path, tokenizer_folder):
    from datasets import load_dataset

    rows = [{"id": f"d{i}", "text": f"Text {i}. {TEXT}"} for i in range(40)]
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out"
    card = build(RLPDataConfig(input=source, output=str(output), test_share=0.3, tokenizer=tokenizer_folder))
    loaded = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == card.num_rows
    ids = {name: {i.rsplit(":", 1)[0] for i in split["id"]} for name, split in loaded.items()}
    assert not ids["train"] & ids["test"]
    assert 4 <= len(ids["test"]) <= 20
    assert isinstance(loaded["train"][0]["context_ids"][0], int)
    assert sorted(os.listdir(output)) == ["README.md", "card.json", "test.parquet", "train.parquet"]


def test_a_split_without_rows_has_no_file_because_datasets_could_not_load_it(tmp_path):
    from datasets import load_dataset

    source, output = write_jsonl(tmp_path / "in.jsonl", [{"text": TEXT}]), str(tmp_path / "out")
    assert build(RLPDataConfig(input=source, output=output, test_share=1e-9)).num_rows == {"train": 2, "test": 0}
    assert sorted(os.listdir(output)) == ["README.md", "card.json", "train.parquet"]
    loaded = load_dataset(output, cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 2}
    with pytest.raises(UserError, match="lower test_share"):
        build(RLPDataConfig(input=source, output=str(tmp_path / "none"), test_share=1 - 1e-15))


def test_the_same_build_gives_the_same_content_hash(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": f"d{i}", "text": f"Text {i}. {TEXT}"} for i in range(30)])
    config = RLPDataConfig(input=source, output=str(tmp_path / "a"), sampler="random", num_positions=3)
    hashes = [
        build(dataclasses.replace(config, output=str(tmp_path / n), seed=s)).content_hash for n, s in ("a0", "b0", "c1")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_f39_the_card_holds_no_path_of_this_machine(tmp_path, tokenizer_folder):
    source, output = write_jsonl(tmp_path / "in.jsonl", [{"text": TEXT}]), tmp_path / "out"
    card = build(RLPDataConfig(input=source, output=str(output), tokenizer=tokenizer_folder))
    for name in ("card.json", "README.md"):
        text = (output / name).read_text()
        assert str(tmp_path) not in text
        assert tokenizer_folder not in text
    assert Card.read(output) == card
    assert card.settings["input"] == card.source == "in.jsonl"
    assert len(card.tokenizer["sha256"]) == 64


def test_an_output_that_is_there_is_left_alone_unless_it_is_a_dataset_and_overwrite_is_given(tmp_path):
    source, output = write_jsonl(tmp_path / "in.jsonl", [{"text": TEXT}]), tmp_path / "out"
    output.mkdir()
    config = RLPDataConfig(input=source, output=str(output), overwrite=False)
    build(config)
    with pytest.raises(UserError, match="is not empty"):
        build(config)
    replaced = dataclasses.replace(config, overwrite=True, num_positions=1)
    assert build(replaced).num_rows == {"train": 1} == {"train": len(rows_of(output))}
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "one.jpg").write_text("dear")
    with pytest.raises(UserError, match="stays as it is"):
        build(dataclasses.replace(replaced, output=str(photos)))
    assert (photos / "one.jpg").read_text() == "dear"
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out", "photos"]


def test_outputs_that_cannot_be_written_say_so_in_one_sentence(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": TEXT}])
    (tmp_path / "file").write_text("")
    for output, message in [
        (f"{tmp_path}/file/out", "could not write to"),
        (source, "lie in one another"),
        (str(tmp_path), "lie in one another"),
        ("/proc/nothing/out", "could not write to /proc/nothing/out"),
        ("", "the output is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            build(RLPDataConfig(input=source, output=output))
    with pytest.raises(UserError, match="is a file"):
        build(RLPDataConfig(input=source, output=str(tmp_path / "file")))
    with pytest.raises(UserError, match="lie in one another"):
        build(RLPDataConfig(input=str(tmp_path), output=str(tmp_path / "out")))


def test_f35_a_build_that_fails_leaves_nothing(tmp_path):
    rows = [*[{"text": TEXT + str(i)} for i in range(30)], *["broken\n"] * 30]
    with pytest.raises(UserError, match="cannot be used"):
        build(RLPDataConfig(input=write_jsonl(tmp_path / "in.jsonl", rows), output=str(tmp_path / "out")))
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_f35_killed_build_leaves_nothing(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": TEXT * 20 + str(i)} for i in range(300)])
    output = tmp_path / "out"
    code = "import sys; from rl_think_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "data", "rlp", "--input", source, "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as build_process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and build_process.poll() is None:
            if any(p.stat().st_size > 1000 for p in tmp_path.glob(".out.partial-*/train.parquet")):
                break
            time.sleep(0.005)
        build_process.send_signal(signal.SIGKILL)
        assert build_process.wait() == -signal.SIGKILL
    assert not output.exists()
    assert len(list(tmp_path.glob(".out.partial-*"))) == 1
    build(RLPDataConfig(input=source, output=str(output), num_positions=1))
    assert len(rows_of(output)) == 300
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out"]


def test_f35_a_kill_between_the_two_renames_of_overwrite_loses_nothing(tmp_path):
    output = tmp_path / "out[1]"
    config = RLPDataConfig(input=write_jsonl(tmp_path / "in.jsonl", [{"text": TEXT}]), output=str(output))
    build(config)
    output.rename(tmp_path / ".out[1].old-0123")
    with pytest.raises(UserError, match="not empty"):
        build(config)
    assert len(rows_of(output)) == 2


def test_a_build_at_work_is_no_left_over_and_its_place_can_be_taken(tmp_path):
    def slow():
        with whole_folder(str(tmp_path / "out")) as first:
            (first / "a").write_text("a")
            with whole_folder(str(tmp_path / "out")) as second:
                assert first.is_dir()
                (second / "b").write_text("b")

    # The second one was faster; the first fails rather than take its place.
    with pytest.raises(UserError, match="could not write to"):
        slow()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "entropy"}, "needs `tokenizer`, `model`"),
        ({"model": "m"}, "only asked by the sampler entropy"),
        ({"stride": 0}, "`stride` is at least 1"),
        ({"num_positions": 0}, "`num_positions` is at least 1"),
        ({"test_share": 1.0}, "`test_share`"),
        ({"instruction_file": "x"}, "needs elicit instruct"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        RLPDataConfig(input="i", output="o", **changes)


def test_the_command_builds_and_shows_a_table(tmp_path, capsys):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": TEXT}, {"text": "[bold]"}])
    assert main(["data", "rlp", "--input", source, "--output", str(tmp_path / "out"), "--sampler", "sentence"]) == 0
    shown = capsys.readouterr().out
    assert "rows in train.parquet" in shown
    assert "documents left out: no position" in shown


@pytest.mark.parametrize(
    "argv", [["nope"], ["rlp", "--input", "no.txt", "--output", "x"], ["rlp", "--input", "a", "--output", ""]]
)
def test_bad_input_is_one_sentence_and_exit_1(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *argv]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rl-think data: ")
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_help_teaches_and_needs_no_torch(capsys):
    assert main(["data", "--help"]) == 0
    assert "rl-think data rlp --input" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["data", "rlp", "--help"])
    assert caught.value.code == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(RLPDataConfig):
        assert f"--{field.name.replace('_', '-')}" in told
    assert "by a hash of their id" in told


def test_the_settings_import_no_torch_and_no_nltk():
    code = (
        "import sys, rl_think_ext.data.rlp; print({'torch', 'nltk', 'pyarrow', 'datasets', 'tqdm'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("second", ["out", "elsewhere/out"])  # built anew in its place; another folder of the same name
def test_load_dataset_never_takes_another_builds_rows_out_of_its_cache(tmp_path, second):
    from datasets import load_dataset

    for name, text in (("out", TEXT), (second, TEXT + " A fourth one ends here.")):
        source, output = write_jsonl(tmp_path / "in.jsonl", [{"text": text}]), tmp_path / name
        output.parent.mkdir(exist_ok=True)
        build(RLPDataConfig(input=source, output=str(output), overwrite=True))
        loaded = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))["train"]
        assert loaded["context"] == [row["context"] for row in rows_of(output)]
