"""What this door uses of TRL beyond its documented surface, each name in this one place and checked.

Tested with trl 1.16.0. Private names move between releases: a missing one raises here, not in the middle of a run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rl_think_ext.errors import UserError

if TYPE_CHECKING:
    from trl import GRPOTrainer

TESTED = "1.16"
_METHODS = (
    "_tokenize_prompts",
    "_calculate_rewards",
    "_generate_single_turn",
    "_generate_and_score_completions",
    "_compute_loss",
    "_load_from_checkpoint",
    "_log_metric",
)
# What `logprob_kernel` answers in place of: the patched head, asked by `fused_lm_head=True`.
_FUSED_HEAD = ("add_fused_lm_head", "FusedCausalLMOutput")


def check_version(version: str) -> str | None:
    """A warning for a trl outside the tested range (F43), or None.

    >>> check_version("1.16.3") is None
    True
    """
    if version.split(".")[:2] == TESTED.split("."):
        return None
    return f"trl {version} is not the tested {TESTED}.x: check the first steps' numbers, or install trl~={TESTED}.0"


def check_host() -> None:
    """Warn about an untested trl; refuse one that lacks what is used here.

    Raises:
        UserError: a name that is gone.
    """
    import trl

    message = check_version(trl.__version__)
    if message:
        warnings.warn(message, stacklevel=2)
    from trl.trainer import utils

    missing = [f"GRPOTrainer.{name}" for name in _METHODS if not hasattr(trl.GRPOTrainer, name)]
    missing += [f"trainer.utils.{name}" for name in _FUSED_HEAD if not hasattr(utils, name)]
    if missing:
        raise UserError(f"trl {trl.__version__} has no {missing[0]}: install trl~={TESTED}.0")


def trainer_of(log_metric: Any) -> GRPOTrainer:
    """The trainer behind the `log_metric` that a reward is handed: the one way there under the stock command.

    Raises:
        UserError: log_metric is not a trainer's method (any more).
    """
    trainer = getattr(log_metric, "__self__", None)
    if trainer is None or not hasattr(trainer, "accelerator"):
        raise UserError(
            "the reward cannot reach the trainer through `log_metric`: use ThinkGRPOTrainer (rl-think train), or call "
            "reward.bind(trainer) before trainer.train()"
        )
    return trainer


def tokenizer_of(trainer: GRPOTrainer) -> Any:
    """The tokenizer that the trainer uses."""
    return trainer._tokenizer


def fused_output(logprob: Any, entropy: Any, mask: Any) -> Any:
    """The answer of a model that TRL asks for log-probs (`fused_lm_head=True`), in TRL's own type."""
    from trl.trainer.utils import FusedCausalLMOutput

    return FusedCausalLMOutput(log_probs=logprob, entropy=entropy, label_mask=mask)


def stop_at(trainer: GRPOTrainer, token: int) -> None:
    """Let the transformers path stop at a token, and count it as an ending.

    TRL takes the ids of the model's generation config when it is built; its own copies decide from then on.
    """
    if token not in trainer.eos_token_ids:
        trainer.eos_token_ids = [*trainer.eos_token_ids, token]
    if not trainer.use_vllm:
        trainer.generation_config.eos_token_id = trainer.eos_token_ids
        trainer.generation_kwargs["eos_token_id"] = trainer.eos_token_ids


def stops_at_text(trainer: GRPOTrainer) -> bool:
    """Whether a trainer's transformers path can stop at a text: our own can, where it samples the plain way."""
    return hasattr(trainer, "rlmt") and not trainer.use_transformers_continuous_batching


@contextmanager
def stopping_at(trainer: GRPOTrainer, text: str) -> Iterator[None]:
    """Let the transformers path stop at a text while the trainer samples.

    transformers' own way (`stop_strings`) needs the tokenizer among the arguments of `generate`, where the trainer has
    no place for one, and breaks where tokens are words.
    """
    from transformers import StoppingCriteriaList

    from rl_think_ext.scoring.complete import StopText

    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    criteria = StoppingCriteriaList([StopText(tokenizer_of(trainer), text)])
    model.generate = partial(model.generate, stopping_criteria=criteria)
    try:
        yield
    finally:
        del model.generate


def replace_logged_advantages(trainer: GRPOTrainer, advantages: list[float]) -> None:
    """Put the advantages that are trained on into the completions table, in place of the ones TRL computed."""
    logged = trainer._logs["advantages"]
    for _ in range(min(len(advantages), len(logged))):
        logged.pop()
    logged.extend(advantages)


def log_metrics(trainer: GRPOTrainer, metrics: dict[str, float]) -> None:
    """Add metrics of this rank to the next log, where no reward function is at hand."""
    mode = "train" if trainer.model.training else "eval"
    for name, value in metrics.items():
        trainer._metrics[mode][name].append(value)


def hush_unscorable() -> None:
    """Drop TRL's warning for every unscorable sample, which prints the sample: they are counted by reason."""
    logging.getLogger("trl.trainer.grpo_trainer").addFilter(_is_no_unscorable_warning)


def _is_no_unscorable_warning(record: logging.LogRecord) -> bool:
    return "All reward functions returned None" not in str(record.msg)
