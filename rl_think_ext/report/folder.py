"""What stands in one folder: a run of `rl-think train` (or `trl grpo`), or the folder of `rl-think gain`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.report import rollouts
from rl_think_ext.report.kinds import RELATED, RLP, Kind, kind_of
from rl_think_ext.report.text import bounded, number, plain

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Folder:
    """One folder as it was read; nothing in it is trusted.

    Args:
        path: The folder.
        name: What the page calls it.
        info: run.json, or gain.json of an offline measurement, or as much as an older run left.
        log: Metrics by step in ascending order, one mapping per step.
        alarms: What the alarms said, in order.
        measured: measured.json, or None.
        tables: Completions tables by step, paths only: there can be thousands.
        offline: Whether this is the folder of `rl-think gain`.
        kind: What it is a run of.
        notes: What the reader of the page has to know about the folder.
    """

    path: Path
    name: str
    info: Entry
    log: Mapping[float, Entry] = field(default_factory=dict)
    alarms: tuple[Entry, ...] = ()
    measured: Entry | None = None
    tables: tuple[tuple[int, Path], ...] = ()
    offline: bool = False
    kind: Kind = RLP
    notes: tuple[str, ...] = ()

    @property
    def last_step(self) -> float | None:
        """The last step with a log, or None."""
        return max(self.log, default=None)

    @property
    def baseline(self) -> str:
        """Whose weights score without a thought in training, in words."""
        settings = self.info.get("settings")
        name = settings.get("baseline") if isinstance(settings, Mapping) else None
        return "baseline" if name is None else f"baseline: {bounded(plain(name), 40, 0)}"

    @property
    def thinks(self) -> bool:
        """Whether RLMT's outputs have thoughts; the control has none."""
        settings = self.info.get("settings")
        return not isinstance(settings, Mapping) or settings.get("style") not in ("none", "response-only")

    @property
    def shows_thoughts(self) -> bool:
        """Whether the reward model was shown RLMT's thoughts, too, as an ablation."""
        settings = self.info.get("settings")
        return isinstance(settings, Mapping) and settings.get("score") == "full"


def read(path: Path) -> Folder:
    """Read a folder, all but its tables.

    Raises:
        UserError: no folder, nothing in it, or a file that is not what its name says.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give the output_dir of `rl-think train`, or that of `rl-think gain`")
    if path.name == "rl_think" and any((path / name).is_file() for name in ("run.json", "log.jsonl", "settings.json")):
        path = path.parent
    name = path.resolve().name or "run"
    if (path / "gain.json").is_file():
        return Folder(path, name, _json(path / "gain.json"), offline=True)
    own, notes = path / "rl_think", []
    records, cut = _lines(own / "log.jsonl")
    if cut:
        notes.append("The last line of log.jsonl is cut off: the run was killed while it was writing.")
    log = _by_step(records, own / "log.jsonl") or _trainer_log(path)
    info, tables = _info(own), _tables(path / "completions")
    kind = kind_of(info, {name for entry in log.values() for name in entry} or _columns(tables))
    # Without a file nobody asked the alarms, or there were none.
    alarms = _lines(own / "alarms.jsonl")[0] if (own / "alarms.jsonl").is_file() else kind.watched(log)
    if tables and not _is_whole(tables[-1][1]):
        notes.append(f"{tables[-1][1].name} is cut off and left out: the run was killed while it was writing.")
        tables = tables[:-1]
    if not log and not tables and not (own / "run.json").is_file():
        raise UserError(_nothing(path))
    if log:  # what lies behind the last log belongs to an earlier run in the same folder, or to one that was given up
        tables = tuple(table for table in tables if table[0] <= max(log))
        alarms = [entry for entry in alarms if (number(entry.get("step")) or 0) <= max(log)]
    kept, note = _kept(kind, info, log, tables, own / "rollouts")
    notes += [note] if note else []
    measured = own / "measured.json"
    return Folder(
        path,
        name,
        info,
        log,
        tuple({(entry.get("step"), entry.get("alarm")): entry for entry in map(_alarm, alarms)}.values()),
        _json(measured) if measured.is_file() else None,
        kept,
        kind=kind,
        notes=tuple(notes),
    )


def _kept(
    kind: Kind, info: Entry, log: Mapping[float, Entry], tables: tuple[tuple[int, Path], ...], kept_rollouts: Path
) -> tuple[tuple[tuple[int, Path], ...], str]:
    """The tables that are of training, and what has to be said about the others."""
    if kind is RLP:
        kept = rollouts.own(tables, kept_rollouts, number(info.get("num_processes")))
        why = "They do not agree with the rollouts of their step: an evaluation or an earlier run wrote them."
    else:
        # Without rollouts to compare with: at an evaluation TRL writes a table over that of the step.
        kept = tuple(table for table in tables if not any(name.startswith("eval_") for name in log.get(table[0], ())))
        why = "An evaluation wrote them over those of its steps."
        if tables and not kept:
            return tables, "Every completions table is of a step with an evaluation, and holds its samples, too."
    lost = len(tables) - len(kept)
    return kept, f"Completions tables left out: {lost} of {len(tables)}. {why}" if lost else ""


def _columns(tables: tuple[tuple[int, Path], ...]) -> set[str]:
    """The columns of the newest table, where no log says what a run is of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return set(pq.read_schema(tables[-1][1]).names) if tables else set()
    except (pa.ArrowException, OSError):
        return set()  # whoever needs it names it


def _info(own: Path) -> Entry:
    if (own / "run.json").is_file():
        return _json(own / "run.json")
    if (own / "settings.json").is_file():
        found = _json(own / "settings.json")
        method = next((name for name in ("rlp", "rlmt", "rlpt", *RELATED) if name in found), "rlp")
        return {"method": method, "settings": found.get(method), "fingerprint": found.get("fingerprint")}
    return {}


def _alarm(entry: Entry) -> Entry:
    return {"step": number(entry.get("step")), "alarm": str(entry.get("alarm", ""))}


def _json(path: Path) -> Entry:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; take it away, or restore it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected an object; take it away, or restore it")
    return found


def _lines(path: Path) -> tuple[list[Entry], bool]:
    """The objects of a .jsonl file, and whether its last line was cut off by a kill."""
    if not path.is_file():
        return [], False
    found: list[Entry] = []
    lines = path.read_bytes().split(b"\n")
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            if place == len(lines):  # no line end behind it
                return found, True
            raise UserError(f"{path}, line {place}: not JSON ({error}); mend or delete this line") from error
        if not isinstance(entry, dict):
            raise UserError(f"{path}, line {place}: expected an object, got {type(entry).__name__}; delete this line")
        found.append(entry)
    return found, False


def _by_step(records: list[Entry], path: Path) -> dict[float, Entry]:
    """One mapping per step. A step that goes back is a resume: what the killed run logged from there on is dropped."""
    log: dict[float, dict[str, Any]] = {}
    last = float("-inf")
    for place, entry in enumerate(records, start=1):
        step = number(entry.get("step"))
        if step is None:
            raise UserError(f"{path}, entry {place}: no number under `step`; delete this line")
        if step < last:
            log = {old: values for old, values in log.items() if old < step}
        # Training, evaluation and the summary at the end log the same step one after another.
        log.setdefault(step, {}).update(entry)
        last = step
    return dict(log)


def _trainer_log(path: Path) -> dict[float, Entry]:
    """The trainer's own log out of the newest trainer_state.json, for runs without log.jsonl."""
    states = [path / "trainer_state.json", *path.glob("checkpoint-*/trainer_state.json")]
    states = [state for state in states if state.is_file()]
    if not states:
        return {}
    newest = max(states, key=lambda state: (state.parent == path, _step_of(state.parent.name)))
    history = _json(newest).get("log_history")
    return _by_step([e for e in history if isinstance(e, dict)], newest) if isinstance(history, list) else {}


def _tables(folder: Path) -> tuple[tuple[int, Path], ...]:
    found = [(_step_of(path.stem), path) for path in folder.glob("completions_*.parquet")]
    return tuple(sorted(table for table in found if table[0] >= 0))


def _is_whole(path: Path) -> bool:
    """Whether a Parquet file has its end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        return file.read() == b"PAR1"


def _step_of(name: str) -> int:
    digits = name.replace("-", "_").rpartition("_")[2]
    return int(digits) if digits.isascii() and digits.isdigit() else -1


def _nothing(path: Path) -> str:
    inside = sorted(_runs_in(path))
    if inside:
        return f"{path} holds no run itself, but {', '.join(inside[:5])} in it do: name one of them, or two"
    if any(file.stem.isdecimal() for file in path.glob("*.jsonl")):
        run = path.resolve().parent
        here = f", {run}" if (run / "rl_think").is_dir() else ""
        return f"{path} holds verl's dumps of rollouts; the page is of a run: name its trainer.default_local_dir{here}"
    return (
        f"{path} holds no run: neither rl_think/log.jsonl nor rl_think/run.json nor completions/ nor gain.json. "
        "`rl-think train --config RUN.yaml` leaves them in its output_dir, `rl-think gain --output DIR` gain.json"
    )


def _runs_in(path: Path) -> Iterator[str]:
    for inner in path.iterdir():
        if (inner / "rl_think").is_dir() or (inner / "gain.json").is_file():
            yield inner.name
