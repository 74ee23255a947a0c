"""The compiled module `_native`, where there is one: which backends that gives, and why there is none."""

from __future__ import annotations

import importlib
import os
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

INSTRUCTIONS = ("avx512_bf16", "avx512", "avx2", "scalar")


@cache
def _loaded() -> tuple[Any, str]:
    try:
        return importlib.import_module("rl_think_ext.kernels._native"), ""
    except (ImportError, OSError) as error:
        return None, str(error)


def problem() -> str:
    """Why the compiled module is not there; empty where it is."""
    return _loaded()[1]


@cache
def module() -> Any:
    """The compiled module, or None where it was not built or cannot be loaded; then that is said once, aloud (F17).

    Raises:
        ValueError: RL_THINK_ISA names instructions that there are not, or that this machine does not have.
    """
    found, why_not = _loaded()
    if found is None:
        warnings.warn(
            f"the compiled kernels are not there ({why_not}): log-probs come from the slower torch backend. "
            "Install a C++ compiler (GCC 11 or Clang 14, or newer) and reinstall rl_think_ext to get them.",
            stacklevel=2,
        )
        return None
    wanted = os.environ.get("RL_THINK_ISA")
    if wanted and found.isa() != wanted:
        raise ValueError(f"RL_THINK_ISA is one of {', '.join(INSTRUCTIONS)} that this machine has, got {wanted!r}")
    return found


@torch.compiler.assume_constant_result
def beats_torch() -> bool:
    """Whether the compiled module is there with vector instructions: plain C++ is slower than torch's own vectors."""
    native = module()
    return native is not None and (native.isa() != "scalar" or os.environ.get("RL_THINK_ISA") == "scalar")


@torch.compiler.assume_constant_result
def backends() -> tuple[str, ...]:
    """The backends that work here, best first."""
    return _backends()


@cache
def _backends() -> tuple[str, ...]:
    native = module()
    if native is None:
        return ("torch",)
    return ("cuda", "cpp", "torch") if native.has_cuda and torch.cuda.is_available() else ("cpp", "torch")


def choose(backend: str, x: Tensor, name: str) -> str:
    """The backend for a tensor.

    Raises:
        ValueError: an explicit backend that is not there or does not compute this dtype or device.
    """
    if backend != "auto" and backend not in backends():
        raise ValueError(f"backend is 'auto' or one of {backends()} here, got {backend!r}")
    fitting = {"cpu": "cpp", "cuda": "cuda"}.get(x.device.type, "torch")
    if x.dtype == torch.float64 or fitting not in backends():
        fitting = "torch"
    if backend == "auto":
        return "torch" if fitting == "cpp" and not beats_torch() else fitting
    if backend in (fitting, "torch"):
        return backend
    raise ValueError(f"backend {backend!r} does not compute {name} of {x.dtype} on {x.device}: say 'auto'")
