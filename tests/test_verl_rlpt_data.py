"""RLPT's rows on their way to verl: what is read of a folder, what is refused, what `rl-think data verl` writes."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docs_runner import ROOT
from omegaconf import OmegaConf
from test_trl_rlpt import row
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

from rl_think_ext.data import rlpt, verl_rows
from rl_think_ext.data.segment_rows import schema, segment_of
from rl_think_ext.errors import UserError
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.verl import RLPTDataset

POLICY = str(ROOT / "recipes/rlmt/tiny/models/policy")
TEXT = (
    "The first sentence stands here at the start of it. Dr. Smith wrote the second one by hand. A third one follows it "
    "here today. The end of it is here."
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(POLICY)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folders of chats and of texts as `rl-think data rlpt` leaves them, and both for verl."""
    root = tmp_path_factory.mktemp("data")
    documents = [{"id": f"doc{i}", "text": TEXT.replace("first", f"first, number {i},")} for i in range(12)]
    (root / "texts.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    for form in ("chat", "text"):
        asked = {"input": str(root / "texts.jsonl"), "test_share": 0.3, "dedup": "none", "form": form}
        rlpt.build(rlpt.RLPTDataConfig(output=str(root / form), **asked))
        verl_rows.build(verl_rows.VerlDataConfig(input=str(root / form), output=str(root / f"{form}-verl")))
    return root


def data(**changes):
    return OmegaConf.create({"max_prompt_length": 4096, "shuffle": False, "seed": None, **changes})


def rows_of(path):
    return pq.read_table(path).to_pylist()


def write(path, rows):
    table = pa.Table.from_pylist(rows, schema=schema()) if "prompt" in rows[0] else pa.Table.from_pylist(rows)
    pq.write_table(table, path)
    return str(path)


@pytest.mark.parametrize("folder", ["chat", "text", "chat-verl", "text-verl"])
def test_a_row_has_its_prompt_and_its_segment(built, tokenizer, folder):
    found = RLPTDataset(str(built / folder), tokenizer, data())
    stored = rows_of(built / folder.removesuffix("-verl") / "train.parquet")
    assert len(found) == len(stored) > 8 and {one["task"] for one in stored} == {"asr", "msr"}
    for i, given in enumerate(stored):
        item = found[i]
        assert item["raw_prompt"] == given["prompt"]
        assert segment_of(item["think_row"], "") == segment_of(given, "")
        assert item["think_row"]["id"] == given["id"] and f"row {i + 1} of" in item["think_row"]["where"]
        assert item["reward_model"] == {"ground_truth": given["reference"]}
        assert (item["agent_name"], item["data_source"]) == ("rl_think_prediction", "rlpt")


def test_f42_what_a_row_says_of_a_judge_goes_nowhere(tokenizer, tmp_path):
    rows = [{**row(i), "server": "http://x", "judge_model": "mine"} for i in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    item = RLPTDataset(str(tmp_path / "t.parquet"), tokenizer, data())[1]
    assert set(item["think_row"]) == {
        "id", "where", "task", "context", "reference", "segment_ends", "next_segment",
    }  # fmt: skip


def test_verl_builds_batches_of_it(built, tokenizer):
    config = data(custom_cls={"path": "pkg://rl_think_ext.verl", "name": "RLPTDataset"}, rl_think={"trainer": "rlpt"})
    dataset = create_rl_dataset(str(built / "chat"), config, tokenizer, None)
    batch = next(iter(StatefulDataLoader(dataset, batch_size=4, collate_fn=collate_fn)))
    assert list(batch["think_row"]) == [dataset[i]["think_row"] for i in range(4)]
    with pytest.raises(UserError, match=r"trainer\.v1\.trainer_mode=rlpt"):
        create_rl_dataset(str(built / "chat"), data(custom_cls=config.custom_cls), tokenizer, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": None}, "column `reference`"),
        ({"segment_ends": [99]}, "column `segment_ends`"),
        ({"task": "both"}, "column `task` is one of asr, msr"),
        ({"next_segment": " More."}, "column `next_segment`"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "column `prompt`, message 1: the role 'tool'"),
        ({"prompt": [*row()["prompt"], {"role": "assistant", "content": "x"}]}, "ends with the assistant's message"),
        ({"prompt": None}, "column `prompt`: expected a chat"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_f33_one_row_that_cannot_be_used_is_found_among_many(tokenizer, tmp_path, changes, words):
    rows = [row(i) for i in range(400)]
    rows[333] = {**rows[333], **changes}
    with pytest.raises(UserError, match=r"row 334 of") as error:
        RLPTDataset(write(tmp_path / "t.parquet", rows), tokenizer, data())
    assert words in str(error.value)


def test_f33_a_missing_column_is_named_with_the_command(tokenizer, tmp_path):
    rows = [{name: value for name, value in row().items() if name != "segment_ends"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"segment_ends.*rl-think data rlpt"):
        RLPTDataset(str(tmp_path / "t.parquet"), tokenizer, data())


def test_the_longest_prompt_is_found_and_refused(tokenizer, tmp_path):
    rows = [row(i) for i in range(300)]
    rows[171] = row(171, context="word " * 400)
    rows[171]["prompt"] = [{"role": "user", "content": "word " * 400}]
    with pytest.raises(UserError, match=r"row 172 of.*longer than data\.max_prompt_length 300.*--max-prompt-tokens"):
        RLPTDataset(write(tmp_path / "t.parquet", rows), tokenizer, data(max_prompt_length=300))


def test_chats_need_a_template_and_texts_do_not(built):
    tokenizer = load_tokenizer(POLICY)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template.*--form text"):
        RLPTDataset(str(built / "chat"), tokenizer, data())
    assert len(RLPTDataset(str(built / "text"), tokenizer, data())) > 8


def test_verls_own_dataset_reads_what_is_written(built, tokenizer):
    stored = rows_of(built / "chat/test.parquet")
    config = data(filter_overlong_prompts=False, cache_dir=str(built / "cache"))
    found = RLHFDataset([str(built / "chat-verl/test.parquet")], tokenizer, config)
    assert len(found) == len(stored) > 0
    for i, given in enumerate(stored):
        assert found[i]["raw_prompt"] == given["prompt"] and found[i]["data_source"] == "rlpt"
        assert found[i]["reward_model"]["ground_truth"] == given["reference"]
