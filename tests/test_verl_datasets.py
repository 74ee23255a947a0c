"""The datasets of the verl door: what is read of a folder or a file, what is refused, and where it says so."""

import json
import pickle
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docs_runner import ROOT
from omegaconf import OmegaConf
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

from rl_think_ext.data import rlmt, rlp, verl_rows
from rl_think_ext.data.card import Card
from rl_think_ext.data.reader import Reader
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.template import TagIds
from rl_think_ext.verl import RLMTDataset, RLPDataset
from rl_think_ext.verl.data_files import files_of, name_splits

POLICY = str(ROOT / "recipes/rlmt/tiny/models/policy")
TEXT = (
    "The first sentence stands here at the start. Dr. Smith wrote the second one. A third one follows it here. The end."
)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    from rl_think_ext.tiny.text import save_text_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_text_model(folder, 32, 1)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(text_model):
    return load_tokenizer(text_model)


@pytest.fixture(scope="module")
def chats():
    return load_tokenizer(POLICY)


@pytest.fixture(scope="module")
def built(tmp_path_factory, text_model):
    """Folders as `rl-think data` leaves them: rlp with ids, text without, rlmt, and the first and last for verl."""
    root = tmp_path_factory.mktemp("data")
    documents = [{"id": f"doc{i}", "text": TEXT.replace("first", f"first, number {i},")} for i in range(12)]
    (root / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    prompts = [{"id": f"p{i}", "prompt": f"Write {i} lines about rain."} for i in range(12)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    texts, share = str(root / "texts.jsonl"), {"test_share": 0.3}
    rlp.build(rlp.RLPDataConfig(input=texts, output=str(root / "rlp"), tokenizer=text_model, **share))
    rlp.build(rlp.RLPDataConfig(input=texts, output=str(root / "text"), **share))
    rlmt.build(rlmt.RLMTDataConfig(input=str(root / "prompts.jsonl"), output=str(root / "rlmt"), **share))
    for name in ("rlp", "rlmt"):
        verl_rows.build(verl_rows.VerlDataConfig(input=str(root / name), output=str(root / f"{name}-verl")))
    return root


def data(**changes):
    return OmegaConf.create({"max_prompt_length": 512, "shuffle": False, "seed": None, **changes})


def rows_of(path):
    return pq.read_table(path).to_pylist()


def write(path, rows, schema=None):
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=4)
    return str(path)


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["rlp", "text", "rlp-verl"])
def test_a_row_has_the_ids_that_the_reader_of_both_doors_gives(built, tokenizer, folder):
    found = RLPDataset(str(built / folder), tokenizer, data(rl_think={"rlp": {"num_target_tokens": 3}}))
    stored = rows_of(built / folder.removesuffix("-verl") / "train.parquet")
    reader = Reader(tokenizer, RLPConfig(num_target_tokens=3), TagIds.of(tokenizer))
    assert len(found) == len(stored)
    for i, row in enumerate(stored):
        item, where = found[i], f"row {i}"
        context = reader.context(row, where)
        think = item["think_row"]
        assert think["context_ids"] == list(context)
        assert think["prompt_ids"] == list(reader.prompt(row, context, where))
        assert think["target_ids"] == list(reader.target(row, where))
        assert think["all_target_ids"][:3] == think["target_ids"]
        assert (think["id"], think["context"], think["target"]) == (row["id"], row["context"], row["target"])
        assert item["raw_prompt"] == [{"role": "user", "content": row["prompt"]}]
        assert item["reward_model"] == {"ground_truth": row["target"]}
        assert item["extra_info"]["index"] == item["index"] == i
        assert item["agent_name"] == "rl_think_thought"
        assert item["data_source"] == "rlp"


@pytest.mark.parametrize("folder", ["rlmt", "rlmt-verl"])
def test_a_row_of_rlmt_has_its_chat(built, chats, folder):
    found = RLMTDataset(str(built / folder), chats, data())
    stored = rows_of(built / "rlmt/train.parquet")
    assert [found[i]["raw_prompt"] for i in range(len(found))] == [row["prompt"] for row in stored]
    assert [found[i]["think_row"]["id"] for i in range(len(found))] == [row["id"] for row in stored]
    assert found[0]["agent_name"] == "rl_think_chat" and found[0]["reward_model"] == {"ground_truth": ""}


def test_verl_builds_batches_and_goes_on_behind_a_saved_one(built, tokenizer):
    config = data(
        custom_cls={"path": "pkg://rl_think_ext.verl", "name": "RLPDataset"},
        shuffle=True,
        seed=3,
        rl_think={"trainer": "rlp"},
    )

    def loader():
        found = create_rl_dataset([str(built / "rlp")], config, tokenizer, None, max_samples=-1)
        sampler = create_rl_sampler(config, found)
        return StatefulDataLoader(found, batch_size=4, sampler=sampler, collate_fn=collate_fn, num_workers=0)

    whole = [list(batch["index"]) for batch in loader()]
    first = loader()
    steps = iter(first)
    assert list(next(steps)["index"]) == whole[0]
    state, second = first.state_dict(), loader()
    second.load_state_dict(state)
    assert [list(batch["index"]) for batch in second] == whole[1:]
    batch = next(iter(loader()))
    stacked = tu.get_tensordict(batch)
    assert stacked[0]["think_row"]["prompt_ids"] == batch["think_row"][0]["prompt_ids"]


def test_f10_a_dataset_that_was_read_from_goes_to_a_process_of_its_own(built, tokenizer):
    found = RLPDataset(str(built / "text"), tokenizer, data())
    assert pickle.loads(pickle.dumps(found))[1] == found[1]  # noqa: S301 - written a moment ago


def test_some_samples_are_the_same_in_every_run_also_without_a_seed(built, tokenizer):
    def drawn(**changes):
        found = RLPDataset(str(built / "rlp"), tokenizer, data(**changes), max_samples=5)
        return [found[i]["index"] for i in range(len(found))]

    assert drawn() == [0, 1, 2, 3, 4]
    assert drawn(shuffle=True) == drawn(shuffle=True) != [0, 1, 2, 3, 4]
    assert drawn(shuffle=True, seed=1) != drawn(shuffle=True, seed=2)


def test_a_file_that_was_built_anew_is_not_the_old_one(tmp_path, tokenizer, built):
    rows = rows_of(built / "rlp/train.parquet")
    path = write(tmp_path / "train.parquet", rows[:3])
    assert RLPDataset(path, tokenizer, data())[0]["think_row"]["id"] == rows[0]["id"]
    write(tmp_path / "train.parquet", rows[3:6])
    assert RLPDataset(path, tokenizer, data())[0]["think_row"]["id"] == rows[3]["id"]


def test_a_source_of_its_own_names_the_metrics(tmp_path, chats):
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "mine": name} for name in ("a", None)]
    found = RLMTDataset(write(tmp_path / "t.parquet", rows), chats, data(reward_fn_key="mine"))
    assert [found[i]["data_source"] for i in range(2)] == ["a", "rlmt"]


def test_a_model_for_pictures_is_asked_for_none():
    import asyncio

    assert asyncio.run(RLPDataset.process_vision_info([], image_patch_size=14, config=None)) == (None, None)


# --- folders, splits, files -----------------------------------------------------------------------------------------


def test_a_folder_is_read_by_its_split(built, tokenizer):
    def ids(name, **config):
        found = RLPDataset(name, tokenizer, data(**config))
        return [found[i]["think_row"]["id"] for i in range(len(found))]

    folder = str(built / "rlp")
    train, test = ([row["id"] for row in rows_of(built / f"rlp/{split}.parquet")] for split in ("train", "test"))
    assert ids(folder) == ids(f"{folder}::train") == ids(f"{folder}/tr*.parquet") == train
    assert ids(f"{folder}::test") == ids(f"{folder}/test.parquet") == test
    assert ids(folder, val_files=folder) == test  # the validation side of a run
    assert ids([f"{folder}::train", f"{folder}::test"]) == train + test


def test_a_pattern_may_stand_for_folders(built, tokenizer, tmp_path):
    rows = rows_of(built / "rlp/train.parquet")
    for name, some in (("b", rows[2:5]), ("a", rows[:2])):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.parquet", some)
    found = RLPDataset(f"{tmp_path}/*/train.parquet", tokenizer, data())
    assert [found[i]["think_row"]["id"] for i in range(len(found))] == [row["id"] for row in rows[:5]]
    assert found[4]["think_row"]["where"].startswith(f"row 3 of {tmp_path}/b/train.parquet")


def test_one_folder_on_both_sides_reads_its_two_splits(built, tokenizer):
    folder = str(built / "rlp")
    config = OmegaConf.create({"data": data(train_files=folder, val_files=folder), "trainer": {}})
    with pytest.raises(UserError, match=r"both name the folder .*say which split each reads, .*::train and .*::test"):
        RLPDataset(folder, tokenizer, config.data)
    name_splits(config)
    assert config.data.train_files == [f"{folder}::train"] and config.data.val_files == [f"{folder}::test"]
    assert len(RLPDataset(config.data.val_files, tokenizer, config.data)) == Card.read(folder).num_rows["test"]


def test_without_validation_one_row_of_the_training_data_stands_in(built, tokenizer):
    trainer = {"val_before_train": False, "test_freq": -1}
    config = OmegaConf.create({"data": data(train_files=str(built / "rlp"), val_files=None), "trainer": trainer})
    name_splits(config)
    assert len(RLPDataset(config.data.val_files, tokenizer, config.data, max_samples=config.data.val_max_samples)) == 1
    config.data.val_files, config.trainer.test_freq = None, 5
    with pytest.raises(UserError, match=r"data.val_files names nothing to read.*or do not validate: trainer.val_bef"):
        name_splits(config)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rlp::tset", "data.train_files: .*rlp has no split tset; there are test.parquet, train.parquet"),
        ("nowhere", "data.train_files: there is no .*nowhere .looked from"),
        ("nowhere::test", "data.train_files: there is no .*nowhere::test"),
        ("no*.parquet", "no file is named like .*no.*parquet"),
        ("texts.txt", r"texts.txt is no .parquet, .jsonl, .json file"),
        ("broken.parquet", "could not read .*broken.parquet: .*[Pp]arquet"),
        ("empty.parquet", "empty.parquet: no rows"),
    ],
)
def test_what_is_not_there_is_named(built, tokenizer, name, said, tmp_path):
    (built / "texts.txt").write_text("a text")
    (built / "broken.parquet").write_bytes(b"PAR1 no")
    write(built / "empty.parquet", [], pa.schema([("prompt", pa.string()), ("context", pa.string())]))
    with pytest.raises(UserError, match=said):
        RLPDataset(str(built / name), tokenizer, data())


def test_each_method_names_the_command_that_builds_its_data(tokenizer, chats):
    for kind, tok, command in ((RLPDataset, tokenizer, "rlp"), (RLMTDataset, chats, "rlmt")):
        with pytest.raises(UserError, match=rf"there is no data/nowhere .*build it with `rl-think data {command}`"):
            kind("data/nowhere", tok, data())


def test_validation_without_a_test_split_says_what_to_do(built, tmp_path):
    shutil.copy(built / "rlp/train.parquet", tmp_path)
    config = data(train_files="elsewhere", val_files=str(tmp_path))
    with pytest.raises(UserError, match=r"data.val_files: .* has no split test; .*--test-share 0.05.*test_freq=-1"):
        files_of(config.val_files, config)


def test_an_address_is_fetched_by_verl(built, tokenizer, monkeypatch):
    from verl.utils import fs

    monkeypatch.setattr(fs, "copy_to_local", lambda src: str(built / src.removeprefix("hdfs://place/")))
    assert len(RLPDataset("hdfs://place/rlp::test", tokenizer, data())) == Card.read(built / "rlp").num_rows["test"]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def changed(built, tokenizer, tmp_path):
    """The dataset of a file in which one row was changed, and its settings."""

    def make(number, folder="rlp", settings=None, **values):
        rows = rows_of(built / folder / "train.parquet")[:8]
        rows[number].update(values)
        path = write(tmp_path / "mine.parquet", rows)
        return RLPDataset(path, tokenizer, data(rl_think={"rlp": settings or {}}))

    return make


@pytest.mark.parametrize(
    ("number", "values", "said"),
    [
        (5, {"prompt": None}, r"row 6 of .*mine.parquet \(id .*: column `prompt` holds nothing"),
        (6, {"context": None}, r"row 7 of .*: column `context` is missing or no text"),
        (6, {"context": "", "context_ids": None}, r"row 7 of .*: the context is empty"),
        (5, {"context_ids": [3, 10**6]}, r"row 6 of .*: column `context_ids` holds something that is no id below"),
        (5, {"context_ids": [-1]}, r"row 6 of .*: column `context_ids` holds something that is no id"),
        (7, {"context_ids": [3, None]}, r"row 8 of .*: column `context_ids` holds something that is no id"),
        (7, {"target_ids": [3, 4, 10**6]}, r"row 8 of .*: column `target_ids` holds something that is no id"),
        (5, {"prompt": "another text<think>"}, r"row 6 of .*: the prompt does not hold the context"),
        (5, {"prompt": "The first"}, r"row 6 of .*: the prompt does not end with <think>.*elicit: prefill"),
    ],
)
def test_f33_a_row_that_cannot_be_used_is_named_when_the_dataset_is_built(changed, number, values, said):
    with pytest.raises(UserError, match=said):
        changed(number, **values)


def test_f33_a_padding_token_counts_where_it_is_scored(changed, tokenizer):
    pad = tokenizer.pad_token_id
    assert pad not in (tokenizer.eos_token_id, tokenizer.bos_token_id), "then it could stand in a text"
    assert changed(5, target_ids=[7, 8, pad])[5]["think_row"]["all_target_ids"] == [7, 8, pad]
    with pytest.raises(UserError, match=r"row 6 of .*`target` holds the padding token"):
        changed(5, target_ids=[7, 8, pad], settings={"num_target_tokens": 3})


def test_a_padding_token_that_is_scored_is_found_among_many_rows(built, tokenizer, tmp_path):
    pad, row = tokenizer.pad_token_id, rows_of(built / "rlp/train.parquet")[0]
    # Behind what is scored it may stand anywhere, in more rows than are looked at.
    rows = [{**row, "target_ids": [7, pad]} for _ in range(900)]
    path = write(tmp_path / "t.parquet", rows)
    assert len(RLPDataset(path, tokenizer, data())) == 900
    rows[611] = {**row, "target_ids": [pad, 7]}
    with pytest.raises(UserError, match=r"row 612 of .*`target` holds the padding token"):
        RLPDataset(write(tmp_path / "u.parquet", rows), tokenizer, data())


def test_one_wrong_id_is_found_among_many_rows(built, tokenizer, tmp_path):
    rows = [dict(row) for row in rows_of(built / "rlp/train.parquet")[:1] * 900]
    rows[611]["context_ids"] = [3, len(tokenizer)]
    with pytest.raises(UserError, match=r"row 612 of .*column `context_ids` holds something that is no id below"):
        RLPDataset(write(tmp_path / "t.parquet", rows), tokenizer, data())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"promt": "a<think>", "context": "a", "target": "b"}], "column `prompt` is missing.*did you mean `promt`"),
        ([{"prompt": "a<think>", "context": "a"}], "row 1: column `target` is missing; there are prompt, context"),
        ([{"prompt": 1, "context": "a", "target": "b"}], "row 1 .*: column `prompt` holds int"),
        ([{"prompt": "a<think>", "context": 2, "target": "b"}], "row 1 .*: column `context` holds int"),
        ([{"prompt": "a<think>", "context": "a", "target": 5}], "row 1 .*: column `target` holds int"),
        ([{"prompt": "a<think>", "context": "a", "target_ids": "b"}], "row 1 .*: column `target_ids` holds str"),
        ([{"prompt": [{"role": "user", "content": x} for x in "ab"], "context": "a", "target": "b"}], "holds a chat"),
    ],
)
def test_f33_columns_that_are_missing_or_of_another_type_are_named(tmp_path, tokenizer, rows, said):
    with pytest.raises(UserError, match=said):
        RLPDataset(write(tmp_path / "t.parquet", rows), tokenizer, data())


def test_f33_extra_info_may_be_nothing_and_nothing_else_than_names_and_values(tmp_path, chats):
    asked = {"prompt": [{"role": "user", "content": "hi"}]}
    rows = [{**asked, "extra_info": {"mine": 1, "index": 9}}, {**asked, "extra_info": None}]
    found = RLMTDataset(write(tmp_path / "t.parquet", rows), chats, data())
    assert [found[i]["extra_info"] for i in range(2)] == [
        {"mine": 1, "index": 0, "id": "row 0"},
        {"index": 1, "id": "row 1"},
    ]


def user(content):
    return [{"role": "user", "content": content}]


# A row of 900 that none of those is which are read anyway.
MIDDLE = 611


def many(row, **odd):
    """900 rows that are one, but for the one in the middle."""
    return [{**row, **odd} if i == MIDDLE else row for i in range(900)]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("data_source", 7, "column `data_source` holds int; expected a text"),
        ("mine", [1], "column `mine` holds list; expected a text"),
        ("extra_info", "index 3", "column `extra_info` holds str; expected names with values"),
    ],
)
def test_f33_verls_own_columns_are_looked_at_in_every_row(built, tokenizer, tmp_path, column, value, said):
    row = rows_of(built / "rlp/train.parquet")[0] | {column: None}
    path = write(tmp_path / "t.parquet", many(row, **{column: value}))
    config = data(reward_fn_key="mine" if column == "mine" else "data_source")
    with pytest.raises(UserError, match=rf"^row {MIDDLE + 1} of {path} \(id {row['id']}\): {said}"):
        RLPDataset(path, tokenizer, config)


@pytest.mark.parametrize(
    ("folder", "changes", "said"),
    [
        ("rlp", {"context": "another text"}, "the prompt does not hold the context"),
        ("text", {"context": "another text"}, "the prompt does not hold the context"),
        ("rlp-verl", {"context": "another text"}, "the prompt does not hold the context"),
        ("rlp", {"context": None}, "column `context` is missing or no text"),
        ("text", {"prompt": "no tag"}, "the prompt does not end with <think>"),
        ("rlp", {"target": None, "target_ids": None}, "column `target` holds NoneType"),
        ("text", {"target": None}, "column `target` holds NoneType"),
        ("rlp", {"context_ids": []}, "the context is empty"),
    ],
)
def test_f33_one_row_of_rlp_that_cannot_be_used_is_found_among_many(built, tokenizer, tmp_path, folder, changes, said):
    row = rows_of(built / folder / "train.parquet")[0]
    path = write(tmp_path / "t.parquet", many(row, **changes))
    with pytest.raises(UserError, match=rf"^row {MIDDLE + 1} of {path} \(id {row['id']}\): {said}"):
        RLPDataset(path, tokenizer, data())


@pytest.mark.parametrize("column", ["prompt", "messages"])
@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([*user("a"), {"role": "assistant", "content": "b"}], "the chat ends with the assistant's message"),
        ([{"role": "tool", "content": "7"}, *user("a")], "message 1: the role 'tool' is none of system, user"),
        ([], "expected a chat .*, got an empty list"),
        (None, "expected a chat .*, got NoneType|column `prompt` is text, and there is no column `messages`"),
    ],
)
def test_f32_one_chat_that_is_none_is_found_among_many(tmp_path, chats, column, chat, said):
    row = {"id": "p", "prompt": "User: hi"} | {column: user("hi")}
    path = write(tmp_path / "t.parquet", many(row, id="odd", **{column: chat}))
    with pytest.raises(UserError, match=rf"^row {MIDDLE + 1} of {path} \(id odd\).*({said})"):
        RLMTDataset(path, chats, data())


def test_f24_one_tag_is_found_among_many_chats_where_a_frame_would_not_survive_it(tmp_path, tokenizer, chats):
    path = write(tmp_path / "t.parquet", many({"prompt": user("a long question")}, prompt=user("</think>")))
    assert len(RLMTDataset(path, chats, data())) == 900
    with pytest.raises(UserError, match=rf"row {MIDDLE + 1} of .*a user message holds the tag '</think>'"):
        RLMTDataset(path, tokenizer, data(rl_think={"rlmt": {"style": "response"}}))


@pytest.mark.parametrize(
    ("prompt", "chat"),
    [
        (user([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]), user("a b")),
        ([{"role": "system", "content": None}, *user("a")], [{"role": "system", "content": ""}, *user("a")]),
    ],
)
def test_f32_blocks_and_nothing_are_read_as_text(tmp_path, chats, prompt, chat):
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n")
    assert RLMTDataset(str(tmp_path / "t.jsonl"), chats, data())[0]["raw_prompt"] == chat


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a lone text", "row 2 of .*: column `prompt` is text, and there is no column `messages`"),
        ([], "row 2 of .*, column `prompt`: expected a chat .*, got an empty list"),
        (None, "row 2 of .*, column `prompt`: expected a chat .*, got NoneType"),
        ([{"role": "tool", "content": "7"}], "row 2 of .*message 1: the role 'tool' is none of system, user"),
        ([{"role": "user"}, {"role": "assistant", "content": "b"}], "the chat ends with the assistant's message"),
        (user([{"type": "image", "image": "x.png"}]), "row 2 of .*a block of `content` is image; only text"),
    ],
)
def test_f32_what_is_no_chat_is_refused_when_the_dataset_is_built(tmp_path, chats, prompt, said):
    same = "one" if isinstance(prompt, str) else [{"role": "user", "content": "hi"}]
    if prompt and isinstance(prompt[0], dict) and isinstance(prompt[0].get("content"), list):
        same = user([{"type": "text", "text": "hi"}])
    rows = [{"prompt": same, "messages": user("hi")}, {"prompt": prompt, "messages": None}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not isinstance(prompt, str):
        (tmp_path / "t.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    with pytest.raises(UserError, match=said):
        RLMTDataset(str(tmp_path / "t.jsonl"), chats, data())


def test_the_text_of_a_frame_is_not_asked_but_the_chat_beside_it(tmp_path, chats):
    rows = [{"prompt": "User: hi\nAssistant:", "messages": user("hi")}]
    assert RLMTDataset(write(tmp_path / "t.parquet", rows), chats, data())[0]["raw_prompt"] == user("hi")


@pytest.mark.parametrize("ours", [{}, {"rl_think": {"trainer": "rlmt"}}])
def test_under_another_trainer_a_run_ends_before_it_begins(built, tokenizer, ours):
    config = data(custom_cls={"path": "pkg://rl_think_ext.verl", "name": "RLPDataset"}, **ours)
    with pytest.raises(UserError, match=r"data.custom_cls.name: RLPDataset .* Say `trainer.v1.trainer_mode=rlp`"):
        create_rl_dataset([str(built / "rlp")], config, tokenizer, None)


def test_a_model_with_a_processor_is_refused(built, tokenizer):
    with pytest.raises(UserError, match="brings a processor for images or sound, and RLP is for text"):
        RLPDataset(str(built / "rlp"), tokenizer, data(), processor=object())


def test_a_tokenizer_without_a_chat_template_is_refused_but_for_a_frame(built, tokenizer):
    with pytest.raises(UserError, match="no chat template: a raw base model takes `style: response`"):
        RLMTDataset(str(built / "rlmt"), tokenizer, data())
    found = RLMTDataset(str(built / "rlmt"), tokenizer, data(rl_think={"rlmt": {"style": "response"}}))
    assert found.longest[0] > 30, "the frame's words are counted"


# --- lengths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["rlp", "text", "rlp-verl"])
def test_the_longest_row_of_all_is_found_and_refused(built, tokenizer, folder, tmp_path):
    rows = rows_of(built / folder / "train.parquet")
    long = max(rows, key=lambda row: len(row["context"]))
    # Alone, and far from the rows that are looked at anyway.
    rows = [row for row in rows if len(row["context"]) < len(long["context"]) - 2]
    place = tmp_path / "t.parquet"
    write(place, [*rows * 8, long, *rows * 9])
    found = RLPDataset(str(place), tokenizer, data())
    length, where = found.longest
    assert f"row {len(rows) * 8 + 1} of {place} (id {long['id']})" == where
    with pytest.raises(UserError, match=rf"{long['id']}.*a prompt of {length} tokens is longer than data.max_prompt_l"):
        RLPDataset(str(place), tokenizer, data(max_prompt_length=length - 1))


def test_f6_a_row_of_few_characters_and_many_tokens_is_refused_when_it_is_read(built, tokenizer, tmp_path):
    row = rows_of(built / "text/train.parquet")[0]
    usual, limit = len(row["prompt"]), 64
    rain = "雨" * (usual // 2)
    odd = {**row, "id": "rain", "context": rain, "prompt": rain + "<think>"}
    assert len(odd["prompt"]) < usual and len(tokenizer(rain)["input_ids"]) > limit
    path = write(tmp_path / "t.parquet", many(row, **odd))
    found = RLPDataset(path, tokenizer, data(max_prompt_length=limit))
    assert found.longest[0] < limit
    with pytest.raises(
        UserError,
        match=rf"^row {MIDDLE + 1} of {path} \(id rain\): a prompt of .* is longer than data.max_prompt_length 64",
    ):
        found[MIDDLE]


def test_a_long_chat_is_refused_with_its_template(tmp_path, chats):
    rows = [{"prompt": user("hi")} for _ in range(400)]
    rows[217] = {"prompt": user("hi " * 40)}
    path = write(tmp_path / "t.parquet", rows)
    length, where = RLMTDataset(path, chats, data()).longest
    assert where == f"row 218 of {path}"
    assert length == len(chats.apply_chat_template(rows[217]["prompt"], add_generation_prompt=True, return_dict=False))
    with pytest.raises(UserError, match=rf"row 218 of .*{length} tokens is longer than data.max_prompt_length 32"):
        RLMTDataset(path, chats, data(max_prompt_length=32))


def test_a_model_without_room_for_the_longest_row_is_refused(built, tokenizer):
    found = RLPDataset(str(built / "rlp"), tokenizer, data())
    length, where = found.longest
    found.check_room(length + 20, 16, 4)
    found.check_room(None, 16, 4)
    with pytest.raises(
        UserError, match=rf"{length} tokens, data.max_response_length 16 and 5 more do not fit"
    ) as error:
        found.check_room(length + 20, 16, 5)
    assert str(error.value).startswith(where)


def test_rows_that_are_not_used_are_not_refused(tmp_path, chats):
    rows = [{"prompt": user("hi")}, {"prompt": user("hi " * 90)}]
    path = write(tmp_path / "t.parquet", rows)
    assert len(RLMTDataset(path, chats, data(max_prompt_length=32), max_samples=1)) == 1


# --- the writer -----------------------------------------------------------------------------------------------------


def test_verls_own_dataset_reads_what_is_written(built, chats):
    for name in ("rlp", "rlmt"):
        stored = rows_of(built / name / "test.parquet")
        config = data(filter_overlong_prompts=False, cache_dir=str(built / "cache"))
        found = RLHFDataset([str(built / f"{name}-verl/test.parquet")], chats, config)
        assert len(found) == len(stored)
        for i, row in enumerate(stored):
            asked = row["prompt"] if name == "rlmt" else user(row["prompt"])
            item = found[i]
            assert item["raw_prompt"] == asked and item["index"] == i and item["data_source"] == name
            assert item["reward_model"]["ground_truth"] == row.get("target", "")
            assert item["extra_info"] == {"index": i, "id": row["id"], "split": "test"}


def test_rows_are_numbered_through_over_batches(built, tmp_path, monkeypatch):
    monkeypatch.setattr(verl_rows, "_BATCH", 4)
    write_for_verl(built / "rlp", tmp_path / "out")
    found = [row["extra_info"]["index"] for row in rows_of(tmp_path / "out/train.parquet")]
    assert found == list(range(len(found))) and len(found) > 8


def test_the_card_goes_along(built):
    before, card = Card.read(built / "rlp"), Card.read(built / "rlp-verl")
    assert card.num_rows == before.num_rows and card.tokenizer == before.tokenizer and card.method == "rlp"
    assert card.settings["verl"] == {"input": "rlp", "content_hash": before.content_hash, "data_source": "rlp"}
    assert card.content_hash != before.content_hash
    assert "Tokenizer" in (built / "rlp-verl/README.md").read_text()


def test_a_rendered_prompt_is_written_as_its_chat(built, tmp_path):
    asked = rlmt.RLMTDataConfig(
        input=str(built / "prompts.jsonl"), output=str(tmp_path / "a"), style="response", render=True
    )
    rlmt.build(asked)
    verl_rows.build(verl_rows.VerlDataConfig(input=str(tmp_path / "a"), output=str(tmp_path / "b"), data_source="mine"))
    before, row = rows_of(tmp_path / "a/train.parquet")[0], rows_of(tmp_path / "b/train.parquet")[0]
    assert row["prompt"] == before["messages"] and row["rendered"] == before["prompt"] and row["data_source"] == "mine"


def write_for_verl(source, output, **more):
    return verl_rows.build(verl_rows.VerlDataConfig(input=str(source), output=str(output), **more))


def test_f35_a_build_that_fails_leaves_nothing(built, tmp_path):
    shutil.copytree(built / "rlp", tmp_path / "rlp")
    write(tmp_path / "rlp/test.parquet", rows_of(built / "rlp/test.parquet")[:-1])
    with pytest.raises(UserError, match=r"its card says .* rows, there are .*: build it anew"):
        write_for_verl(tmp_path / "rlp", tmp_path / "out")
    (tmp_path / "rlp/test.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"could not read test.parquet of"):
        write_for_verl(tmp_path / "rlp", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["rlp"]


def test_f35_what_stands_in_the_output_stays(built, tmp_path):
    write_for_verl(built / "rlp", tmp_path / "out")
    with pytest.raises(UserError, match="is not empty; name another one, or pass overwrite"):
        write_for_verl(built / "rlmt", tmp_path / "out")
    assert write_for_verl(built / "rlmt", tmp_path / "out", overwrite=True).method == "rlmt"
    with pytest.raises(UserError, match="lie in one another"):
        write_for_verl(built / "rlp", built / "rlp/out")


def test_only_built_folders_of_these_methods_are_written(built, tmp_path):
    with pytest.raises(UserError, match=r"is no dataset of rl-think data: no card.json"):
        write_for_verl(built, tmp_path / "out")
    shutil.copytree(built / "rlmt", tmp_path / "pairs")
    card = json.loads((tmp_path / "pairs/card.json").read_text())
    (tmp_path / "pairs/card.json").write_text(json.dumps(card | {"method": "rlmt-dpo"}))
    with pytest.raises(UserError, match="holds rows of rlmt-dpo; verl trains rlp, rlmt, rlpt"):
        write_for_verl(tmp_path / "pairs", tmp_path / "out")
