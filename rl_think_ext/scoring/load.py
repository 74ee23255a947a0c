"""Models and tokenizers from a folder or a hub name, without running anyone's code (F38)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_think_ext.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; remote code only when the caller passes the flag by name.

    Raises:
        UserError: nothing there that can be loaded; the text names the place and the cause.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(explain("tokenizer", name, error)) from error


def load_model(name: str, *, dtype: str = "float32", trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model in eval mode from safetensors; a pickle is refused (F38).

    Raises:
        UserError: nothing there that can be loaded; the text names the place and the cause.
    """
    from transformers import AutoModelForCausalLM

    kwargs: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    try:
        return AutoModelForCausalLM.from_pretrained(name, **kwargs).eval()
    except (OSError, ValueError) as error:
        raise UserError(explain("model", name, error)) from error


def explain(what: str, name: str, error: Exception) -> str:
    """Why a model or tokenizer could not be loaded, and what may be done about it, in one line."""
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    place = f"the folder {name}" if Path(name).is_dir() else f"`{name}` (no such folder here; taken as a hub name)"
    if what == "tokenizer":
        return f"could not load a tokenizer from {place}: {cause}"
    return (
        f"could not load a {what} from {place}: {cause} Weights must be safetensors; "
        "code from a repository runs only with `trust_remote_code: true` among the trainer's own keys."
    )
