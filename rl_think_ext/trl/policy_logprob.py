"""Log-probs of the policy loss from `rl_think_ext.kernels` instead of TRL's chunked head: `logprob_kernel: true`.

TRL asks its patched model for the log-probs of a completion, `model(..., labels=labels, fused_lm_head=True)`: in the
policy loss, for the old policy and for the reference. `install` answers this question, and no other: plain calls
(sampling, scoring) run what they ran before. The head is given only the positions that have a label, and is *called*,
inside the model's own forward, so that whatever gathers a sharded weight around a module's forward and backward does so
here too; outside it the weight is empty under ZeRO-3 and a DTensor under FSDP2.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rl_think_ext.errors import UserError
from rl_think_ext.kernels import linear_masked_logprob, masked_logprob
from rl_think_ext.scoring.ema import refuse_sharded
from rl_think_ext.scoring.likelihood import eval_mode
from rl_think_ext.trl import host

NAME = "logprob_kernel"
_OFF = f"Leave `{NAME}` out: TRL's own path then computes the log-probs"
_NUM_CHECKED = 8


@dataclass
class KernelOption:
    """The trainers' option for these log-probs."""

    logprob_kernel: bool = field(
        default=False,
        metadata={
            "help": "Policy, old and reference log-probs from rl_think_ext.kernels instead of TRL's chunked head: the "
            "head on the completion's tokens only, multiplied in float32. The same loss, in float32 to rounding; worth "
            "it on a CPU, where TRL also computes the prompt's positions. Refused where the model's head is not plain."
        },
    )


class LogprobHead(nn.Linear):
    """An LM head that gives logits as before, and log-probs where it is handed labels."""

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        temperature: float = 1.0,
        softcap: float | None = None,
        entropy: bool = False,
    ) -> Any:
        """Logits [..., V] of hidden [..., D]; with labels [...] log-probs [...] (and entropies), 0.0 where masked."""
        if labels is None:
            return super().forward(hidden)
        kind = hidden.device.type
        dtype = torch.promote_types(hidden.dtype, self.weight.dtype)
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        bias = None if self.bias is None else self.bias.to(dtype)
        # The operands are of autocast's dtype, as for any head; their products and sums stay in float32.
        with torch.autocast(kind, enabled=False):
            return linear_masked_logprob(
                hidden.to(dtype),
                self.weight.to(dtype),
                labels,
                mask,
                bias=bias,
                temperature=temperature,
                softcap=softcap,
                entropy=entropy,
            )


def install_all(trainer: Any) -> None:
    """Let a trainer's policy, and its reference model where it has one, compute log-probs by the kernels.

    Raises:
        UserError: settings or a model for which the numbers would be others than TRL's, saying what to do.
    """
    check_settings(trainer)
    install(trainer.model, trainer.temperature, entropy=True)
    if trainer.ref_model is not None:
        # Of the policy's architecture, which was checked; and in autocast by now, where only rough numbers agree.
        _answer(trainer.accelerator.unwrap_model(trainer.ref_model), trainer.temperature, entropy=False)


def check_settings(trainer: Any) -> None:
    """Refuse what the kernels do not compute.

    Raises:
        UserError: naming the setting.
    """
    args = trainer.args
    refused = {
        "use_liger_kernel": (args.use_liger_kernel, "Liger replaces parts of the model after they were checked"),
        "cast_lm_head_to_fp32": (args.cast_lm_head_to_fp32, f"`{NAME}` multiplies in float32 by itself"),
        "entropy_coef": (args.entropy_coef != 0, "its entropy is a number to look at and has no gradient"),
        "use_adaptive_entropy": (args.use_adaptive_entropy, "its entropy is a number to look at and has no gradient"),
        "router_aux_loss_coef": (trainer.aux_loss_enabled, "it computes no load-balancing loss; say 0.0"),
    }
    for name, (given, reason) in refused.items():
        if given:
            raise UserError(f"`{NAME}: true` and `{name}` do not go together: {reason}. Leave one of them out.")


def install(model: Any, temperature: float, entropy: bool = False) -> None:
    """Make a model that TRL has patched answer TRL's question for log-probs through its own head and the kernels.

    Args:
        model: The policy or reference, also with a PEFT adapter around it.
        temperature: TRL's sampling temperature; divides the logits.
        entropy: Also return entropies (detached).

    Raises:
        UserError: a head or model of unknown structure, or numbers that are not the model's own.
    """
    base, before = _answer(model, temperature, entropy)
    try:
        _check_numbers(base, temperature)
    except BaseException:
        base.forward = before
        for head in _linears(base.get_output_embeddings()):
            head.__class__ = nn.Linear
        raise


def _answer(model: Any, temperature: float, entropy: bool) -> tuple[Any, Any]:
    """Puts the new forward over TRL's; returns the model below an adapter and the forward that it had."""
    refuse_sharded(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    _check_structure(base)
    for head in _linears(base.get_output_embeddings()):
        head.__class__ = LogprobHead
    scale, softcap = _logit_scale(base), getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    # cap * tanh(s * x / cap) / T is c * tanh(x / c) / (T / s) with c = cap / s: a scale needs no code of its own.
    wanted = {"temperature": temperature / scale, "softcap": softcap and softcap / scale, "entropy": entropy}
    before = base.forward

    # `generate`, the trainer and the scorer look at the signature: it stays the model's.
    @functools.wraps(type(base).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("fused_lm_head") or kwargs.get("shift_labels") is not None:
            return before(*args, **kwargs)
        return _logprobs(self, args, kwargs, wanted)

    base.forward = types.MethodType(forward, base)
    return base, before


def _logprobs(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], wanted: dict[str, Any]) -> Any:
    """What TRL's fused head returns: [B, T - 1] log-probs and entropies of the next tokens, 0.0 where there is none."""
    labels = kwargs.pop("labels")[:, 1:]
    for name in ("fused_lm_head", "shift_labels", "num_items_in_batch"):
        kwargs.pop(name, None)
    # Looked up at every call: PEFT and FSDP replace both after this was installed.
    hidden = model.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
    head = model.get_output_embeddings()
    hidden, labels = hidden.to(head.weight.device), labels.to(head.weight.device)
    mask = labels != -100
    found = head(hidden, labels=labels, mask=mask, **wanted)
    logprob, entropy = found if wanted["entropy"] else (found, None)
    return host.fused_output(logprob, entropy, mask)


def _linears(head: Any) -> list[nn.Linear]:
    """The head itself, or the copies that PEFT's `modules_to_save` keeps of it; none where it is something else."""
    found = [head]
    if hasattr(head, "modules_to_save") and hasattr(head, "original_module"):
        found = [head.original_module, *head.modules_to_save.values()]
    return found if all(type(one) in (nn.Linear, LogprobHead) for one in found) else []


def _check_structure(base: Any) -> None:
    """Raises UserError for a model that is not a body and a plain linear head of its own."""
    name = type(base).__name__
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if head is None or getattr(base, "base_model", base) is base or not hasattr(base, "config"):
        raise UserError(f"`{NAME}: true`: {name} is not a body with a head (`get_output_embeddings()`). {_OFF}.")
    linears = _linears(head)
    if not linears:
        raise UserError(
            f"`{NAME}: true`: the head of {name} is {type(head).__name__}, not a plain nn.Linear (an adapter on it, or "
            f"quantized?), so its weight alone does not give the logits. Take it out of `target_modules`. {_OFF}."
        )
    for one in linears:
        if "forward" in vars(one) or one._forward_hooks or one._forward_pre_hooks:
            raise UserError(f"`{NAME}: true`: the head of {name} has a forward or hooks of somebody else. {_OFF}.")
    scale = _logit_scale(base)
    if not scale > 0:
        raise UserError(f"`{NAME}: true`: {name} multiplies its logits by {scale}; only a scale above 0 works. {_OFF}.")


def _logit_scale(base: Any) -> float:
    """The factor of a model's logits, before the soft cap: each family has its own name for it."""
    config = base.config.get_text_config()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)  # Granite divides by it, HyperCLOVA X multiplies
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" or not scaling else 1.0 / float(scaling)


@torch.no_grad()
def _check_numbers(base: Any, temperature: float) -> None:
    """One short forward each way: a model that does to its logits what nobody here knows of is refused.

    Raises:
        UserError: with the largest difference.
    """
    name, device = type(base).__name__, base.get_output_embeddings().weight.device
    ids = torch.arange(_NUM_CHECKED, device=device)[None] % base.config.get_text_config().vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        with eval_mode(base):
            logits = base(**inputs).logits[:, :-1]
            found = base(**inputs, labels=ids, fused_lm_head=True).log_probs
    except Exception as error:
        raise UserError(f"`{NAME}: true`: {name} cannot be called as TRL calls it: {error}. {_OFF}.") from error
    plain = masked_logprob(logits.float(), ids[:, 1:], temperature=temperature)
    assert isinstance(plain, Tensor)
    difference = float((found - plain).abs().max())
    # The plain way rounds its logits to the model's dtype: the label's by half of eps, and those that it competes with.
    allowed = max(1e-4, torch.finfo(logits.dtype).eps) * float(1 + logits.abs().max() / temperature)
    if not difference <= allowed:
        raise UserError(
            f"`{NAME}: true`: {name} does something to its logits that is not known here: log-probs differ from the "
            f"model's own by {difference:.2g} nats. {_OFF}."
        )
