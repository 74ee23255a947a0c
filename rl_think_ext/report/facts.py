"""Settings, versions and the data card as tables: what differs first, then the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_think_ext.data.card import WORDS
from rl_think_ext.report.folder import Folder
from rl_think_ext.report.text import DASH, plain


@dataclass(frozen=True)
class Line:
    """A row of a table: a name, one value per folder, and its default where it has one and differs from it."""

    name: str
    values: tuple[str, ...]
    default: str | None = None
    differs: bool = False


@dataclass(frozen=True)
class Table:
    """Rows to show and rows to fold away; `differing` says that the shown ones tell two folders apart."""

    key: str
    title: str
    shown: tuple[Line, ...]
    folded: tuple[Line, ...] = ()
    differing: bool = False
    empty: str = ""


def tables(folders: Sequence[Folder]) -> list[Table]:
    """Settings, arguments of the trainer, versions, run and data of all folders."""
    blocks = [
        _settings(folders),
        _block("arguments", "Arguments of the trainer that are not its defaults", folders, _arguments),
        _block("versions", "Versions", folders, lambda f: _mapping(f.info.get("versions"))),
        _block("run", "Run", folders, _run),
        _block("measurement", "Measurement", folders, _measurement),
        _block("data", "Data", folders, _data),
    ]
    return [block for block in blocks if block.shown or block.folded]


def _settings(folders: Sequence[Folder]) -> Table:
    """The method's settings; differences from the defaults are shown, or, of two folders, from one another."""
    defaults = {f.name: f.default for f in dataclasses.fields(folders[0].kind.config)}
    table = _block("settings", "Settings", folders, lambda f: _mapping(f.info.get("settings")))
    if len(folders) > 1:
        return table
    own = _mapping(folders[0].info.get("settings"))
    off = {name for name, value in own.items() if name in defaults and value != defaults[name]}
    shown_defaults = {name: plain(defaults[name]) or DASH for name in off}
    lines = [
        dataclasses.replace(line, differs=line.name in off, default=shown_defaults.get(line.name))
        for line in (*table.shown, *table.folded)
    ]
    # What is no setting of the method (the thoughts of a measurement) has no default that is known here.
    shown = tuple(line for line in lines if line.differs or line.name not in defaults)
    empty = "" if shown or not lines else "Every setting is at its default."
    folded = tuple(line for line in lines if line not in shown)
    return dataclasses.replace(table, shown=shown, folded=folded, empty=empty)


def _block(key: str, title: str, folders: Sequence[Folder], read: Any) -> Table:
    found = [read(folder) for folder in folders]
    names = list(dict.fromkeys(name for mapping in found for name in mapping))
    lines = []
    for name in names:
        values = tuple(plain(mapping[name]) if name in mapping else DASH for mapping in found)
        lines.append(Line(name, values, differs=len(set(values)) > 1))
    if len(folders) == 1:
        return Table(key, title, tuple(lines))
    differing = tuple(line for line in lines if line.differs)
    equal = tuple(line for line in lines if not line.differs)
    return Table(key, title, differing, equal, True, "" if differing else "The same in both.")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _arguments(folder: Folder) -> Mapping[str, Any]:
    return _mapping(folder.info.get("arguments"))


def _run(folder: Folder) -> Mapping[str, Any]:
    names = {"method": "method", "model": "model", "trainer": "trainer", "num_processes": "processes"}
    names |= {"source": "settings from", "fingerprint": "fingerprint of the settings"}
    shown = {to: folder.info[name] for name, to in names.items() if folder.info.get(name) is not None}
    if folder.last_step is not None:
        shown["last logged step"] = int(folder.last_step)
        tokens = folder.log[folder.last_step].get("num_tokens")
        shown |= {"tokens": int(tokens)} if isinstance(tokens, (int, float)) else {}
    return shown


def _measurement(folder: Folder) -> Mapping[str, Any]:
    """What `rl-think gain` counted beside the gain."""
    if not folder.offline:
        return {}
    names = {
        "thought_length": "mean length of a thought",
        "unclosed": "share not closed",
        "score_noise": "noise [nats]",
    }
    shown = {to: folder.info[name] for name, to in names.items() if folder.info.get(name) is not None}
    helping = _mapping(folder.info.get("helping")).get("mean")
    shown |= {} if helping is None else {"share of thoughts that help": helping}
    for name, title in (("unscorable", "unscorable"), ("select", "selection")):
        shown |= {f"{title}: {reason}": number for reason, number in _mapping(folder.info.get(name)).items()}
    return shown


def _data(folder: Folder) -> Mapping[str, Any]:
    """The dataset's own name and size, then its card."""
    dataset = folder.info.get("dataset")
    if not isinstance(dataset, Mapping):
        return {"data": folder.info["data"]} if folder.info.get("data") is not None else {}
    card = _mapping(dataset.get("card"))
    shown: dict[str, Any] = {"dataset": dataset.get("name"), "rows": dataset.get("num_rows")}
    if not card:
        return {**shown, "card": "none: data that `rl-think data` built carries one"}
    words = WORDS.get(str(card.get("method")), WORDS["rlp"])
    shown |= {"built from": card.get("source"), "seed": card.get("seed"), words.units: card.get("num_documents")}
    shown |= {f"rows in {split}": number for split, number in _mapping(card.get("num_rows")).items()}
    if words is WORDS["rlp"]:
        shown["contexts cut on the left"] = card.get("num_cut_contexts")
    for name, title in (("skipped_documents", words.units_out), ("skipped_positions", words.rows_out)):
        shown |= {f"{title.lower()}: {r}": n for r, n in _mapping(card.get(name)).items()}
    shown |= dict(_mapping(card.get("counts")))
    shown |= {f"setting {name}": value for name, value in _mapping(card.get("settings")).items()}
    return {**shown, "content hash": str(card.get("content_hash") or "")[:16]}
