"""Where sampling ends, in the words of each rollout engine of verl: at a token, or at a text that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl_think_ext.errors import UserError

# What an engine is told beside the texts, so that a text at which it stops is kept.
_KEEPS: dict[str, dict[str, bool]] = {
    "vllm": {"include_stop_str_in_output": True},
    "sglang": {"no_stop_trim": True},
}


def register_engine(name: str, like: str = "vllm") -> None:
    """Let a rollout engine of one's own be told its stops as another one is.

    Raises:
        UserError: `like` is no engine that is known here.
    """
    _KEEPS[name] = _known(like)


def stop_at(
    sampling_params: Mapping[str, Any], rollout_name: str, *, token: int | None = None, text: str | None = None
) -> dict[str, Any]:
    """A request's sampling parameters with a further stop; what was there before stays.

    Args:
        sampling_params: As verl makes them.
        rollout_name: `actor_rollout_ref.rollout.name`.
        token: An id that ends an output; the engines keep it.
        text: A text that ends an output; it is kept, too.

    Raises:
        UserError: an engine that is not known to stop there.

    >>> stop_at({"top_k": -1}, "vllm", text="</response>")
    {'top_k': -1, 'stop': ['</response>'], 'include_stop_str_in_output': True}
    """
    if token is None and text is None:
        return dict(sampling_params)
    keeps, found = _known(rollout_name), dict(sampling_params)
    if token is not None:
        found["stop_token_ids"] = _with(found.get("stop_token_ids"), token)
    if text is not None:
        found |= {"stop": _with(found.get("stop"), text), **keeps}
    return found


def _known(name: str) -> dict[str, bool]:
    if name not in _KEEPS:
        raise UserError(
            f"actor_rollout_ref.rollout.name: {name} cannot be told where an output ends; known are "
            f"{', '.join(sorted(_KEEPS))}. An engine of your own that takes vLLM's parameters joins them by "
            "rl_think_ext.verl.stops.register_engine(name)"
        )
    return _KEEPS[name]


def _with(given: Any, new: Any) -> list[Any]:
    there = [] if given is None else [given] if isinstance(given, str | int) else list(given)
    return there if new in there else [*there, new]
