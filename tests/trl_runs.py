"""TRL's real trainers on a policy of some thousand weights, whose sampler writes what a test says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from models import qwen3
from reward_models import reward_tokenizer

TINY = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 40,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
    "save_strategy": "no",
    "max_steps": 1,
    "log_completions": True,
    "num_completions_to_print": 0,
}
# As Qwen's, without the sentence of its system.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_policy(folder: Path, **changes: Any) -> Path:
    """A policy with a Qwen-like chat template, whose assistant's turn ends with its end of text."""
    tokenizer = reward_tokenizer("qwen")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model = qwen3(len(tokenizer), max_position_embeddings=512, **{**ids, **changes})
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return folder


class ScriptedMixin:
    """Before a trainer's class: its sampler writes `said`, one output after another."""

    said: tuple[str, ...] = ()

    def _generate_single_turn(self, prompt_ids: list[Any], *args: Any, **kwargs: Any) -> Any:
        tokenizer = self.processing_class  # type: ignore[attr-defined]
        texts = [self.said[i % len(self.said)] for i in range(len(prompt_ids))]
        return [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts], None


def table_of(trainer: Any) -> dict[str, list[Any]]:
    """The first table of completions that a run wrote."""
    return pq.read_table(min(Path(trainer.args.output_dir, "completions").glob("*.parquet"))).to_pydict()


def logs(trainer: Any, name: str) -> list[float]:
    """Every logged value of a metric."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
