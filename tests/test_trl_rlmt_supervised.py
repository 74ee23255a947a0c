"""Warm start and preference pairs through `rl-think train`: what is trained, what is left out, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset
from models import qwen3
from reward_models import TEMPLATES, reward_tokenizer
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rl_think_ext.cli.train import method_of, run
from rl_think_ext.errors import UserError
from rl_think_ext.formats import render_zero
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.template import join
from rl_think_ext.trl import rlmt_launch
from rl_think_ext.trl.rlmt_supervised import ThinkDPOConfig, ThinkSFTConfig, dpo_rows, sft_rows

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPT = [{"role": "user", "content": "Name a colour."}]
SFT = [{"id": f"s{i}", "prompt": PROMPT, "thought": f"plan {i}", "answer": f"Blue {i}."} for i in range(8)]
DPO = [
    {
        "id": f"d{i}",
        "prompt": PROMPT,
        "chosen": [{"role": "assistant", "content": join("plan", f"Blue {i}.", "think")}],
        "rejected": [{"role": "assistant", "content": join("no", f"Mud {i}.", "think")}],
    }
    for i in range(8)
]
ARGS = SimpleNamespace(max_length=4096)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = reward_tokenizer("qwen")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    qwen3(len(tokenizer), max_position_embeddings=512, **ids).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(policy):
    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture
def start(tmp_path, policy):
    """Run `rl-think train` on rows that are written as a dataset folder."""

    def go(trainer, rows, style="think", **keys):
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        Dataset.from_list(rows).to_parquet(data / "train.parquet")
        config = {
            "rl_think": {"trainer": trainer, "rlmt": {"style": style}},
            "model_name_or_path": str(policy),
            "dtype": "float32",
            "dataset_name": str(data),
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **keys,
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        assert run(["--config", str(tmp_path / "run.yaml")]) == 0
        return tmp_path / "out"

    return go


@pytest.mark.parametrize(("trainer", "rows"), [("sft", SFT), ("dpo", DPO)])
def test_rl_think_train_trains_saves_and_records(start, policy, trainer, rows):
    out = start(trainer, rows)
    before, after = load_file(policy / "model.safetensors"), load_file(out / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    about = json.loads((out / "rl_think/run.json").read_text())
    assert about["method"] == "rlmt" and about["trainer"] == {"sft": "SFTTrainer", "dpo": "DPOTrainer"}[trainer]
    assert about["settings"]["style"] == "think" and about["dataset"]["num_rows"] == 8
    assert "loss" in (out / "rl_think/log.jsonl").read_text()
    assert (out / "report.html").is_file()


def collated(policy, tmp_path, rows, style, **keys):
    """What the real SFTTrainer would train: the ids, and those of them that carry a loss."""
    config = {"model_name_or_path": str(policy), "dataset_name": "d", "output_dir": str(tmp_path)}
    config |= {"dtype": "float32", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, **keys}
    given = rlmt_launch.parse(config, [], "sft", "here")
    trainer = rlmt_launch._sft(given, RLMTConfig(style=style), Dataset.from_list(rows), None)
    return trainer, next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize(
    ("style", "target"),
    [("think", "<think>\nplan 3\n</think>\n\nBlue 3.<|im_end|>"), ("none", "Blue 3.<|im_end|>")],
)
def test_the_output_alone_is_trained_and_the_control_is_one_key(policy, tmp_path, style, target):
    trainer, batch = collated(policy, tmp_path, [SFT[3]], style)
    tokenizer = trainer.processing_class
    trained = tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert trained.strip() == target
    whole = tokenizer.decode(batch["input_ids"][0])
    assert whole.startswith("<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n")


def test_the_length_limit_holds_before_the_data_is_read(policy, tmp_path, capsys):
    # TRL's default would cut this plan at 1,024 tokens: its answer would never be trained.
    words = " ".join(["plan"] * 1500)
    rows = [{"id": "long", "prompt": PROMPT, "thought": words, "answer": "Blue."}]
    trainer, batch = collated(policy, tmp_path, rows, "think")
    assert trainer.args.max_length == 20_000 and batch["input_ids"].shape[1] > 1500
    assert "Blue." in trainer.processing_class.decode(batch["labels"][0][-6:])
    trainer, batch = collated(policy, tmp_path, [*rows, SFT[0]], "think", max_length=256)
    assert "left out 1 of 2 rows above 256 tokens" in capsys.readouterr().out
    assert len(trainer.train_dataset) == 1
    with pytest.raises(UserError, match="all 1 rows are longer than max_length 64"):
        collated(policy, tmp_path, rows, "think", max_length=64)


def test_packs_hold_whole_rows(policy, tmp_path):
    trainer, batch = collated(policy, tmp_path, SFT, "think", packing=True, max_length=128)
    trained = trainer.processing_class.decode(batch["labels"][batch["labels"] != -100])
    assert all(f"<think>\nplan {i}\n</think>\n\nBlue {i}.<|im_end|>" in trained for i in range(len(SFT)))
    with pytest.raises(UserError, match="packing_strategy: wrapped cuts rows in two"):
        collated(policy, tmp_path, SFT, "think", packing=True, max_length=128, packing_strategy="wrapped")


def test_the_limits_are_the_papers(tmp_path):
    assert ThinkSFTConfig(str(tmp_path), use_cpu=True, bf16=False).max_length == 20_000
    assert ThinkDPOConfig(str(tmp_path), use_cpu=True, bf16=False).max_length == 4_096


def test_a_template_that_drops_thoughts_is_refused(tokenizer):
    tokenizer.chat_template = (
        TEMPLATES["qwen3"] + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(UserError, match="row s0: the chat template changes what the model is to learn"):
        sft_rows(Dataset.from_list(SFT), "think", tokenizer, ARGS)
    with pytest.raises(UserError, match="row d0: the chat template changes what the model is to learn"):
        dpo_rows(Dataset.from_list(DPO), "think", tokenizer, ARGS)


def test_a_template_that_writes_an_empty_thought_is_refused(tokenizer):
    # As Qwen3's: the control would be taught to write the tags, and every output of it would be malformed.
    opened = "m['role'] + '\n' + ('<think>\n\n</think>\n\n' if m['role'] == 'assistant' else '') + m['content']"
    tokenizer.chat_template = TEMPLATE.replace("m['role'] + '\n' + m['content']", opened)
    with pytest.raises(UserError, match=r"row s0: the chat template changes .* write an empty one into it"):
        sft_rows(Dataset.from_list(SFT), "none", tokenizer, ARGS)


def test_a_template_that_opens_the_thought_itself_is_fine(tokenizer):
    tokenizer.chat_template = TEMPLATE.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    assert len(sft_rows(Dataset.from_list(SFT), "think", tokenizer, ARGS)) == len(SFT)
    with pytest.raises(UserError, match="row s0: the chat template changes"):
        sft_rows(Dataset.from_list(SFT), "none", tokenizer, ARGS)


def test_pairs_of_a_raw_base_model_are_trained_in_their_frame(policy, tmp_path):
    pairs = [
        {
            "id": f"d{i}",
            "prompt": PROMPT,
            "chosen": [{"role": "assistant", "content": join("plan", f"Blue {i}.", "response")}],
            "rejected": [{"role": "assistant", "content": join("no", f"Mud {i}.", "response")}],
        }
        for i in range(4)
    ]
    config = {"model_name_or_path": str(policy), "dataset_name": "d", "output_dir": str(tmp_path)}
    config |= {"dtype": "float32", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    given = rlmt_launch.parse(config, [], "dpo", "here")
    trainer = rlmt_launch._dpo(given, RLMTConfig(style="response"), Dataset.from_list(pairs), None)
    row = trainer.train_dataset[0]
    decode = trainer.processing_class.decode
    assert decode(row["prompt_ids"]) == render_zero(PROMPT, "response")
    assert decode(row["chosen_ids"]).strip() == pairs[0]["chosen"][0]["content"]


@pytest.mark.parametrize(
    ("change", "style", "message"),
    [
        ({}, "response", "style response is that of a raw base model"),
        (
            {"thought": "a <think> b"},
            "think",
            "row s0: thought and answer do not make a text of style think: extra_tags",
        ),
        ({"answer": ""}, "none", "row s0: thought and answer do not make a text of style none: empty_response"),
        ({"thought": None}, "think", ""),
    ],
)
def test_f33_rows_that_cannot_be_trained_are_named(tokenizer, change, style, message):
    rows = Dataset.from_list([{**SFT[0], **change}])
    if change.get("thought", "") is None:
        rows, message = rows.remove_columns("thought"), "has no column `thought`; there are id, prompt, answer"
    with pytest.raises(UserError, match=message):
        sft_rows(rows, style, tokenizer, ARGS)


def test_pairs_of_another_style_are_refused(tokenizer):
    with pytest.raises(UserError, match="row d0, column `chosen`: no output of style none"):
        dpo_rows(Dataset.from_list(DPO), "none", tokenizer, ARGS)
    made = dpo_rows(Dataset.from_list(DPO), "think", tokenizer, ARGS)
    assert made[0]["chosen"] == DPO[0]["chosen"] and set(made.column_names) == {"prompt", "chosen", "rejected"}


@pytest.mark.parametrize(("trainer", "rows"), [("sft", SFT), ("dpo", DPO)])
def test_rows_that_are_streamed_cannot_be_measured(start, trainer, rows):
    with pytest.raises(UserError, match=f"`dataset_streaming: true` cannot be used for {trainer}"):
        start(trainer, rows, dataset_streaming=True)


def test_missing_columns_name_the_builder(start):
    with pytest.raises(UserError, match="column `answer` is missing; there are id, prompt, thought"):
        start("sft", [{name: row[name] for name in ("id", "prompt", "thought")} for row in SFT])


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"rlp": {}, "rlmt": {}}, "rlp and rlmt are given; a run has one method"),
        ({"trainer": "ppo", "rlmt": {}}, "`trainer` is one of grpo, sft, dpo for rlmt, got 'ppo'"),
        ({"trainer": "sft", "rlp": {}}, "`trainer` is one of grpo for rlp, got 'sft'"),
        ({"rlmd": {}}, "unknown key `rlmd`; did you mean `rlmt`"),
        ({"rlmt": {"stile": "think"}}, "unknown key `stile`; did you mean `style`"),
        ({"rlmt": {"style": "thinks"}}, "`style` is one of think, .*did you mean `think`"),
        ({"rlmt": {"floor": float("inf")}}, "`floor` is a finite number"),
        ({"rlmt": {"malformed": "unscorable", "floor": 1.0}}, "needs `malformed: floor`"),
        ({"rlmt": {"backend": "server"}}, "needs `server:`"),
        ("text", "expected one of rlp, rlmt"),
    ],
)
def test_f40_a_wrong_block_is_named(block, message):
    with pytest.raises(UserError, match=message):
        method_of(block, "run.yaml")


def test_the_method_of_a_file():
    assert method_of({}, "run.yaml") == ("grpo", RLPConfig())
    assert method_of({"trainer": "dpo", "rlmt": {"style": "none"}}, "x") == ("dpo", RLMTConfig(style="none"))
