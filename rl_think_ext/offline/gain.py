"""One measurement from beginning to end: model, positions, samples, what they say, selection and comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_think_ext.data.reader import Reader
from rl_think_ext.data.sources import source_name
from rl_think_ext.errors import UserError
from rl_think_ext.offline import compare, picture, rows, select
from rl_think_ext.offline.bench import Bench, Place
from rl_think_ext.offline.config import GainConfig
from rl_think_ext.offline.measure import content_hash, measure
from rl_think_ext.offline.rows import Dataset, Position
from rl_think_ext.offline.store import Store, write_whole
from rl_think_ext.offline.summary import COLUMNS, Measured, summary
from rl_think_ext.scoring.sample import max_positions

_QUESTION = ("num_thoughts", "max_thought_tokens", "temperature", "seed", "max_positions")
# Of RLP's settings those that decide no sample: one model is asked, and a batch changes nothing but rounding.
_IDLE = ("baseline", "frozen_gain", "ema_decay", "max_failed_steps", "max_tokens_per_batch")


def run_gain(config: GainConfig) -> dict[str, Any]:
    """Measure, and select and compare where asked; writes the output folder, returns what gain.json holds.

    Raises:
        UserError: a model, data or settings that cannot be used, or not one thought that can be scored.
    """
    _check_select(config)
    bench = _bench(config, config.model)
    dataset, positions = _positions(config, bench)
    length = rows.lengths(dataset.rows(config.split))
    measured = _measured(config, bench, positions, length, config.output)
    chosen = select.Selection.of(measured, config.min_gain)
    found = {**_about(config, bench, dataset), **summary(measured), "select": chosen.as_dict()}
    shown = {found["model"]: measured}
    if config.compare:
        found["compare"], second = _compare(config, config.compare, bench, measured)
        name = found["compare"]["model"]
        shown[name if name not in shown else f"{name} (second)"] = second
    content = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(config.output / "gain.json", content.encode())
    picture.draw(shown, config.num_thoughts, config.output / "gain.png")
    if config.select:
        about = {"model": found["model"], **_settings(config, bench)}
        select.write(str(config.select), dataset, config.split, chosen, about, overwrite=config.overwrite)
    return found


def _check_select(config: GainConfig) -> None:
    """Before any time is spent."""
    folder = config.select
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--select: {folder} is a file; name a folder")
    if any(folder.iterdir()) and not config.overwrite:
        raise UserError(f"--select: the folder {folder} is not empty; name another one, or pass --overwrite")


def _bench(config: GainConfig, name: str) -> Bench:
    return Bench.of(name, config.rlp(), Place(config.device, config.dtype, config.trust_remote_code))


def _positions(config: GainConfig, bench: Bench) -> tuple[Dataset, list[Position]]:
    rlp, room = bench.scorer.config, max_positions(bench.model)
    extra = len(bench.tags.close) + rlp.num_target_tokens - 1
    dataset = rows.load(config.data, config.cutting(rlp, room, extra))
    rows.check_tokenizer(dataset, config.split, bench.tokenizer, config.model)
    reader = Reader(bench.tokenizer, rlp, bench.tags)
    found = rows.read_positions(dataset.rows(config.split), reader, config.max_positions, config.seed)
    rows.check_room(found, room, config.max_thought_tokens, extra)
    return dataset, found


def _measured(
    config: GainConfig, bench: Bench, positions: Sequence[Position], length: Mapping[str, int], folder: Path
) -> Measured:
    asked = {
        "model": bench.name,
        "weights": bench.bits,
        "data": config.data,
        "split": config.split,
        **_settings(config, bench),
        "content": content_hash(positions),
    }
    store = Store(folder, asked, overwrite=config.overwrite)
    measure(bench, config, positions, store)
    found = Measured.of(positions, store.columns(*COLUMNS), length)
    if not found.gains:
        listed = ", ".join(f"{reason} {count}" for reason, count in found.unscorable().items())
        raise UserError(f"not one thought of {bench.name} can be scored ({listed}); see {folder / 'samples.parquet'}")
    return found


def _settings(config: GainConfig, bench: Bench) -> dict[str, Any]:
    """Whatever decides the samples beside model and data."""
    asked = {name: getattr(config, name) for name in _QUESTION}
    rlp = {name: value for name, value in vars(bench.scorer.config).items() if name not in _IDLE}
    where = {"device": str(bench.model.device), "dtype": str(bench.model.dtype).removeprefix("torch.")}
    return {**asked, **where, **rlp}


def _compare(config: GainConfig, name: str, bench: Bench, measured: Measured) -> tuple[dict[str, Any], Measured]:
    other, positions = _bench(config, name), measured.positions
    compare.check_same_tokens(bench.tokenizer, other.tokenizer, positions, (config.model, name))
    shown = source_name(name)
    folder = re.sub(r"[^\w.-]+", "-", shown) + f"-{other.bits:016x}"[:9]
    second = _measured(config, other, positions, measured.lengths, config.output / "compare" / folder)
    found = {"model": shown, **summary(second), "difference": compare.paired(measured, second)}
    del found["by_segment"]
    return found, second


def _about(config: GainConfig, bench: Bench, dataset: Dataset) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "kind": "gain",
        "model": source_name(config.model),
        "data": dataset.name,
        "split": config.split,
        "num_rows": len(dataset.rows(config.split)),
        "settings": _settings(config, bench),
        "card": None if dataset.card is None else vars(dataset.card),
        "versions": {name: version(name) for name in ("rl_think_ext", "torch", "transformers")},
    }
