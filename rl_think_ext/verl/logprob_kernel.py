"""The policy's log-probs under verl by the package's kernels: `rl_think.logprob_kernel: true`."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from rl_think_ext.kernels import masked_logprob

logger = logging.getLogger(__name__)


def logprobs_from_logits(logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Tensor:
    """Log-probs of labels, in float32 whatever the logits are; takes the place of verl's function of this name.

    Args:
        logits: [..., V], already divided by the temperature.
        labels: [...] int64.
        inplace_backward: Let the backward overwrite the logits: nobody else reads them.
    """
    found = masked_logprob(logits, labels, inplace_backward=inplace_backward and logits.requires_grad)
    assert isinstance(found, Tensor)
    return found


def install() -> None:
    """Put the function in the engine's place for verl's, in this process; a second call changes nothing."""
    from verl.workers.engine.fsdp import transformer_impl as engine

    _put(engine)


def _put(engine: Any) -> None:
    if engine.logprobs_from_logits is not logprobs_from_logits:
        logger.info("rl_think: log-probs of the policy by rl_think_ext.kernels")
        engine.logprobs_from_logits = logprobs_from_logits
