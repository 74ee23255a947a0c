"""Log-probability of labels, for the rows that are asked for: from logits, or from hidden states and the head's weight.

Three backends compute the same: "cpp" (compiled; AVX-512, AVX2 or plain C++, whatever the machine has), "cuda", and
"torch", which is the readable reference. docs/kernels.md says what each is for and what it costs. Names are loaded when
they are first asked for, so that importing this package loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_think_ext.kernels.logprob import (
        Partials,
        available_backends,
        linear_masked_logprob,
        logprob_partials,
        masked_logprob,
    )

__all__ = ["Partials", "available_backends", "linear_masked_logprob", "logprob_partials", "masked_logprob"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rl_think_ext.kernels import logprob

    globals()[name] = value = getattr(logprob, name)
    return value
