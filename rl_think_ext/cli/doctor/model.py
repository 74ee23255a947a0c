"""The model and tokenizer of a run: there without a download, the tags, and whether sampling stops behind a thought."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rl_think_ext.cli.doctor.case import BlockedError, Case, Finding, once
from rl_think_ext.cli.doctor.config import arguments, file
from rl_think_ext.errors import UserError
from rl_think_ext.template import CLOSE_TAG, OPEN_TAG, TagIds


class NotCachedError(BlockedError):
    """A hub name that is not on this machine: nothing is wrong with it, and nothing is downloaded to find out."""


def local_folder(name: str, kind: str, revision: str | None = None) -> Path:
    """The folder of a local path, or of a hub name in the cache; nothing is downloaded.

    Raises:
        UserError: a name that can be neither.
        NotCachedError: a hub name that is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(name).is_dir():
        return Path(name)
    try:
        if name.startswith((".", "/", "~")):
            raise UserError(f"there is no folder {name}")
        return Path(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise UserError(f"there is no folder {name}, and it is no hub name either") from error
    except LocalEntryNotFoundError as error:
        raise NotCachedError(name) from error


@once("the model's folder")
def folder(case: Case) -> Path:
    """Where the model lies on this machine."""
    model = arguments(case).model
    if not model.model_name_or_path:
        raise BlockedError("`model_name_or_path:`")
    return local_folder(model.model_name_or_path, "model", model.model_revision)


@once("the tokenizer")
def tokenizer(case: Case) -> Any:
    """The tokenizer, padded on the left and with its end where it has no padding token, as the trainers have it."""
    from rl_think_ext.scoring.load import load_tokenizer

    found = load_tokenizer(str(folder(case)), trust_remote_code=bool(arguments(case).args.trust_remote_code))
    found.padding_side = found.truncation_side = "left"
    found.pad_token = found.pad_token or found.eos_token
    return found


@once("the model's configuration")
def model_config(case: Case) -> Any:
    """The model's own configuration."""
    from transformers import AutoConfig

    from rl_think_ext.scoring.load import explain

    trusted = bool(arguments(case).args.trust_remote_code)
    try:
        return AutoConfig.from_pretrained(folder(case), trust_remote_code=trusted)
    except (OSError, ValueError) as error:
        raise UserError(explain("model", str(folder(case)), error)) from error


def positions(case: Case) -> int | None:
    """Positions of the model, or None where it does not say."""
    from rl_think_ext.scoring.sample import max_positions

    return max_positions(SimpleNamespace(config=model_config(case)))


def vocabulary(case: Case) -> int | None:
    """Rows of the model's embedding, or None where its configuration does not say."""
    config = model_config(case)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "vocab_size", None)


def stops(case: Case) -> list[int]:
    """The ids that end sampling, as GRPOTrainer forms them out of generation_config.json and the tokenizer."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(folder(case))
    except OSError:  # no such file: the model's own configuration decides
        config = GenerationConfig.from_model_config(model_config(case))
    given = config.eos_token_id
    ids = [given] if isinstance(given, int) else list(given or [])
    end = tokenizer(case).eos_token_id
    return ids if end in ids else [end, *ids]


@once("the set of weights")
def num_weights(case: Case) -> int:
    """Numbers in the model's safetensors, from the headers alone.

    Raises:
        UserError: a file that is not whole.
    """
    return count_weights(folder(case))


def count_weights(place: Path) -> int:
    """Numbers in the safetensors of a folder, from the headers alone.

    Raises:
        UserError: a file that is not whole.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in sorted(place.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as weights:
                shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path} cannot be read ({error}): fetch or copy it again") from error
        total += sum(map(math.prod, shapes))
    return total


def check_model(case: Case) -> Iterator[Finding]:
    """The model is there, in safetensors."""
    name = arguments(case).model.model_name_or_path
    try:
        place = folder(case)
    except NotCachedError:
        found = f"The model {name} is taken as a hub name and is not in the cache"
        away = ", and HF_HUB_OFFLINE forbids to fetch it." if case.offline else "; nothing is downloaded here."
        yield Finding("unchecked", "model", found + away, f"Fetch it first: hf download {name}")
        return
    config, size = model_config(case), f"{positions(case) or 'unknown'} positions"
    if not any(place.glob("*.safetensors")):
        there = ", ".join(sorted(p.name for p in place.glob("*.bin"))) or "no weights"
        found = f"The model's folder {place} holds {there}, and only safetensors are loaded: a pickle can run code."
        yield Finding("broken", "model", found, "Save it with save_pretrained(…, safe_serialization=True).")
        return
    millions = num_weights(case) / 1e6
    yield Finding("ok", "model", f"{name}: {config.model_type}, {millions:,.1f} M weights in safetensors, {size}.")


def outgrown(case: Case, name: str) -> list[Finding]:
    """The finding that the tokenizer has more entries than the model, or none."""
    entries, rows = len(tokenizer(case)), vocabulary(case)
    if rows is None or entries <= rows:
        return []
    found = f"The tokenizer has {entries:,} entries, the model an embedding for {rows:,}: an added token has none."
    todo = "model.resize_token_embeddings(len(tokenizer)), train those, save both."
    return [Finding("broken", name, found, todo)]


def check_tags(case: Case) -> Iterator[Finding]:
    """Whether each tag is one token, and what follows for sampling."""
    tags = TagIds.of(tokenizer(case))
    if faults := outgrown(case, "tags"):
        yield from faults
        return
    ids = f"{OPEN_TAG} is {list(tags.open)}, {CLOSE_TAG} is {list(tags.close)}"
    if tags.single:
        yield Finding("ok", "tags", f"One token each: {ids}.")
    else:
        found = f"The tags are several tokens: {ids}; sampling through transformers cannot stop there."
        yield Finding(
            "warn", "tags", found, "vLLM can; or make them tokens: tokenizer.add_tokens(['<think>', '</think>'])."
        )


def check_stop(case: Case) -> Iterator[Finding]:
    """Whether the sampler of this run stops behind a thought."""
    from rl_think_ext.trl import checks

    tags, args, stock = TagIds.of(tokenizer(case)), arguments(case).args, file(case).stock
    if args.use_vllm and not stock:
        yield Finding("ok", "stop", f"rl-think train tells vLLM to stop at {CLOSE_TAG}.")
        return
    ends = stops(case)
    if tags.single and not stock:
        ends = [*ends, *(i for i in tags.close if i not in ends)]
    checks.check_stop(SimpleNamespace(use_vllm=args.use_vllm, args=args, eos_token_ids=ends), tags)
    yield Finding("ok", "stop", f"Sampling ends at the ids {ends}, of which {list(tags.close)} is {CLOSE_TAG}.")
