"""RLMT's reward model: there, one that scores, with a template of its own, where it runs, and who may ask it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl_think_ext.cli.doctor.case import BlockedError, Case, Finding, once
from rl_think_ext.cli.doctor.config import file, method
from rl_think_ext.cli.doctor.model import NotCachedError, count_weights, local_folder

_TODO = "Correct `reward_model:`, or take another one."


@once("the reward model's folder")
def folder(case: Case) -> Path:
    """Where the reward model (or, with a server, its tokenizer and configuration) lies on this machine."""
    name = method(case)[0].reward_model
    if not name:
        raise BlockedError("`reward_model:`")
    return local_folder(name, "model")


@once("the reward model's configuration")
def configuration(case: Case) -> Any:
    """The reward model's own configuration.

    Raises:
        UserError: none, or one that gives other than one number.
    """
    from rl_think_ext.scoring.reward_load import load_reward_config

    folder(case)
    return load_reward_config(method(case)[0])


@once("the reward model's template")
def template(case: Case) -> Any:
    """What writes a chat as the reward model reads it.

    Raises:
        UserError: no template, or one that cannot be used.
    """
    from rl_think_ext.scoring.reward_load import load_reward_template

    return load_reward_template(method(case)[0], configuration(case))


def check_reward_model(case: Case) -> Iterator[Finding]:
    """The reward model is there and gives one number, and what it reads."""
    if file(case).trainer != "grpo":
        return
    config = method(case)[0]
    if not config.reward_model:
        found = "The settings name no reward model."
        yield Finding("broken", "reward model", found, "Add `reward_model: FOLDER or hub name` to `rlmt:`.")
        return
    try:
        place = folder(case)
    except NotCachedError:
        found = f"The reward model {config.reward_model} is taken as a hub name and is not in the cache"
        away = ", and HF_HUB_OFFLINE forbids to fetch it." if case.offline else "; nothing is downloaded here."
        fetch = f"Fetch it first: hf download {config.reward_model}"
        # With a server its weights are needed there, and here only what writes and counts tokens.
        small = " --exclude '*.safetensors'" if config.server else ""
        yield Finding("unchecked", "reward model", found + away, fetch + small)
        return
    kind = configuration(case).model_type
    if not config.server:
        yield from _weights(case, place, kind)
    said = template(case)
    bos = said.encode([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}])
    count = list(getattr(bos, "ids", ())).count(said.tokenizer.bos_token_id)
    starts = f"{count} BOS" if said.tokenizer.bos_token_id is not None else "no BOS"
    found = f"Its own chat template, {starts} per chat, up to {said.max_length:,} tokens, the answer never cut."
    yield Finding("ok", "reward input", found)


def _weights(case: Case, place: Path, kind: str) -> Iterator[Finding]:
    """Weights to be loaded by every process: there, in safetensors, and not too many."""
    config = method(case)[0]
    num = count_weights(place)
    if not num and not config.trust_remote_code:
        there = ", ".join(sorted(path.name for path in place.glob("*.bin"))) or "no weights"
        found = f"The reward model's folder {place} holds {there}, and only safetensors are loaded."
        yield Finding("broken", "reward model", found, "Save it with save_pretrained(…, safe_serialization=True).")
        return
    from rl_think_ext.scoring.reward_model import LOCAL_LIMIT

    size = f"{num / 1e9:,.1f} billion" if num >= 1e9 else f"{num / 1e6:,.1f} M"
    found = f"{config.reward_model}: {kind}, {size} weights, one number per chat; every process loads it whole."
    if num > LOCAL_LIMIT:
        state = "warn" if config.backend == "local" else "broken"
        todo = f"`vllm serve {config.reward_model} --runner pooling`, and `server: http://HOST:8000` in `rlmt:`."
        yield Finding(state, "reward model", f"{found} Above 2 billion it belongs on a server.", todo)  # type: ignore[arg-type]
        return
    yield Finding("ok", "reward model", found)


def check_server(case: Case) -> Iterator[Finding]:
    """The server's address and key, as far as that can be told without asking it."""
    config = method(case)[0]
    if file(case).trainer != "grpo" or not config.server:
        return
    yield from server_findings(case, config, config.server_model or config.reward_model, "one chat")


def server_findings(case: Case, config: Any, served: str, what: str) -> Iterator[Finding]:
    """Address and key of a server that is to serve a model, and what `--live` would send."""
    if config.api_key_env and not os.environ.get(config.api_key_env):
        found = f"The server's key is to be in the variable {config.api_key_env}, which is not set."
        yield Finding(
            "broken", "server", found, f"export {config.api_key_env}=… before the run, or mend `api_key_env:`."
        )
        return
    from rl_think_ext.scoring.endpoint import EndpointConfig
    from rl_think_ext.scoring.endpoint_wire import shown_url

    EndpointConfig(config.server, config.api_key_env)  # refuses an address that is none
    key = f", with the key in {config.api_key_env}" if config.api_key_env else ", without a key"
    found = f"{shown_url(config.server)} is to serve {served}{key}; it was not asked."
    yield Finding("unchecked", "server", found, f"rl-think doctor --live {case.path} sends it {what}.")


def loaded(case: Case) -> Any:
    """The reward model as the run would make it; weights are read, and a server asked, at the first call.

    Raises:
        UserError: what it cannot be.
    """
    from rl_think_ext.scoring.reward_model import load_reward_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_reward_model(method(case)[0])
