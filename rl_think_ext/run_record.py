"""What a run leaves in `rl_think` in its folder for people and tools: its settings, the trainer's logs, its rollouts.

run.json      method, settings and where they came from, model, the trainer's arguments off their defaults, versions,
              data card
log.jsonl     every log of the trainer, one line each; after a resume the later line of a step counts
alarms.jsonl  what the alarms said
rollouts/     STEP.rankR.parquet, the batch behind a log with its scores: RLP's ids, RLPT's segments and outputs (under
              TRL with `log_completions: true`)
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rl_think_ext.data.card import Card
from rl_think_ext.errors import UserError
from rl_think_ext.scoring.gain import Gains, Rollout

FOLDER = "rl_think"
SCORES = ("reasoned", "baseline", "frozen", "gain", "frozen_gain", "accuracy", "baseline_accuracy")
_VERSIONS = ("rl_think_ext", "torch", "trl", "verl", "ray", "transformers", "accelerate", "datasets")


class Record:
    """Writes one rank's part of the run's folder.

    Args:
        output_dir: The run's folder: TRL's `output_dir`, verl's `trainer.default_local_dir`.
        rank: This process; rank 0 writes what all share. verl's driver is the only one that writes.
    """

    def __init__(self, output_dir: str | Path, rank: int = 0) -> None:
        self.folder, self.rank = Path(output_dir) / FOLDER, rank

    def begin(self, step: int) -> None:
        """Take away what an earlier run left here, and of this one what lies behind the checkpoint it goes on from.

        Rank 0 does it for all: an earlier run may have had more of them. Nobody writes before the first log.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.rank:
                return
            for path in self.folder.glob("rollouts/*.parquet"):
                if not path.name[:7].isdigit() or step < int(path.name[:7]) or step == 0:
                    path.unlink()
            if step == 0:
                for name in ("log.jsonl", "alarms.jsonl", "measured.json"):
                    (self.folder / name).unlink(missing_ok=True)
            else:
                self._keep_alarms(step)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}. Choose another output folder."
            ) from error

    def _keep_alarms(self, step: int) -> None:
        """The log keeps its abandoned lines, which readers know; an alarm without its step would speak for this run."""
        path = self.folder / "alarms.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            path.write_text("".join(kept), encoding="utf-8")

    def append(self, name: str, entry: Mapping[str, Any]) -> None:
        """Add a line to a .jsonl file; a number that is none becomes null."""
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(entry)) + "\n")

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout], gains: Gains) -> None:
        """The ids of a batch, exactly as they were scored, and its scores; enough to score it again."""
        import pyarrow as pa

        ids = pa.list_(pa.int32())
        table: dict[str, Any] = {
            "id": pa.array([None if row.get("id") is None else str(row["id"]) for row in rows], pa.string()),
            "step": pa.array([step] * len(rows), pa.int64()),
            "prompt_ids": pa.array([list(r.prompt) for r in rollouts], ids),
            "context_ids": pa.array([list(r.context) for r in rollouts], ids),
            # All the targets that the row has: another setting may score more of them.
            "target_ids": pa.array([_targets(row, r) for row, r in zip(rows, rollouts, strict=True)], ids),
            "completion_ids": pa.array([list(row["completion_ids"]) for row in rows], ids),
        }
        for name in SCORES:
            values = [None if math.isnan(value) else value for value in gains.column(name).tolist()]
            table[name] = pa.array(values, pa.float32())
        table["unscorable"] = pa.array([score.reason for score in gains.scores()], pa.string())
        self.keep(step, pa.table(table))

    def keep(self, step: int, table: Any) -> None:
        """Write this rank's samples of a step, whole or not at all."""
        import pyarrow.parquet as pq

        path = self.folder / "rollouts" / f"{step:07d}.rank{self.rank}.parquet"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        pq.write_table(table, partial)
        partial.replace(path)

    def describe(self, entry: Mapping[str, Any]) -> None:
        """Write run.json."""
        text = json.dumps(plain({**entry, "versions": _versions()}), indent=2)
        (self.folder / "run.json").write_text(text + "\n", encoding="utf-8")


def dataset(rows: Any, name: str | None) -> dict[str, Any]:
    """What is known of the training data, and its card where `rl-think data` made it."""
    card = None
    if name and Path(name).is_dir():
        try:
            card = dataclasses.asdict(Card.read(name))
        except UserError:
            card = None  # a folder of somebody else's
    return {"name": name, "num_rows": len(rows) if hasattr(rows, "__len__") else None, "card": card}


def plain(value: Any) -> Any:
    """The same as JSON holds it: NaN and infinities are null, what JSON does not know is its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (bool, int, str, type(None))) else str(value)


def _targets(row: Mapping[str, Any], rollout: Rollout) -> list[int]:
    given = row.get("target_ids")
    return list(rollout.target if given is None else given)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
