"""Runs of RLMT for the doctor: a tiny policy with a chat template, a tiny reward model, a few rows, all made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from models import qwen3
from reward_models import save_reward_model

from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.tiny import TEXT_TOKENIZER

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PLAN = "Say what three letters are."


def make_policy(folder: Path, template: str | None = TEMPLATE, **changes: Any) -> Path:
    """A Qwen3 of some thousand random weights, with a byte-level tokenizer whose turns end with <|end|>."""
    coder = load_tokenizer(str(TEXT_TOKENIZER))
    coder.add_special_tokens({"eos_token": "<|end|>", "additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    coder.chat_template = template
    model = qwen3(len(coder), **{"max_position_embeddings": 256, "eos_token_id": coder.eos_token_id} | changes)
    model.generation_config.eos_token_id = coder.eos_token_id
    model.save_pretrained(folder)
    coder.save_pretrained(folder)
    return folder


def make_house(place: Path) -> Path:
    """A folder with `policy`, `reward`, and the datasets `chats`, `plans` and `pairs`."""
    make_policy(place / "policy")
    save_reward_model(place / "reward", "llama")
    prompts = [[{"role": "user", "content": f"Name {i} letters."}] for i in range(6)]
    thought = f"<think>\n{PLAN}\n</think>\n\n"
    sides = {
        name: [{"role": "assistant", "content": f"{thought}{said}"}]
        for name, said in (("chosen", "A."), ("rejected", "No."))
    }
    write(place / "chats", [{"id": f"c{i}", "prompt": chat} for i, chat in enumerate(prompts)])
    write(
        place / "plans",
        [{"id": f"s{i}", "prompt": chat, "thought": PLAN, "answer": "A, B, C."} for i, chat in enumerate(prompts)],
    )
    write(place / "pairs", [{"id": f"d{i}", "prompt": chat, **sides} for i, chat in enumerate(prompts)])
    return place


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a folder that `datasets` reads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def grpo(house: Path, place: Path, *, rlmt: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A YAML file of an RLMT run; None takes a key out."""
    block = {"style": "think", "reward_model": str(house / "reward")} | (rlmt or {})
    return run_file(house, place, "chats", **({"rl_think": {"rlmt": block}} | changes))


def supervised(house: Path, place: Path, trainer: str, *, rlmt: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A YAML file of a warm start (sft) or of preference pairs (dpo)."""
    block = {"trainer": trainer, "rlmt": {"style": "think"} | (rlmt or {})}
    keys = {"num_generations": None, "max_completion_length": None, "max_length": 200}
    return run_file(house, place, "plans" if trainer == "sft" else "pairs", rl_think=block, **(keys | changes))


def stock(house: Path, place: Path, *, rlmt: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A YAML file for `trl grpo`."""
    block = {"rlmt": {"reward_model": str(house / "reward")} | (rlmt or {})}
    keys = {"env": {"RL_THINK_CONFIG": yaml.safe_dump(block)}, "reward_funcs": ["rl_think_ext.trl.rlmt"]}
    return run_file(house, place, "chats", **(keys | changes))


def run_file(house: Path, place: Path, data: str, **changes: Any) -> Path:
    keys = {
        "model_name_or_path": str(house / "policy"),
        "dtype": "float32",
        "dataset_name": str(house / data),
        "output_dir": str(place / "out"),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 24,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
    } | changes
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
    return path
