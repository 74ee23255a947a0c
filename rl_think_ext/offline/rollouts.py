"""What a run left of its samples: rollouts by step and rank, its settings and its start, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_think_ext.data import prediction_rows
from rl_think_ext.errors import UserError
from rl_think_ext.offline.dumps import about_dumps, check_method, dumped_steps, read_about, read_dump

IDS = ("prompt_ids", "context_ids", "target_ids", "completion_ids")
_SCORES = ("reasoned", "gain", "unscorable")
# Of a sample of each method: what it needs to be scored again, beside ids of tokens.
_NEEDED = {"rlp": (*IDS, *_SCORES), "rlpt": (*prediction_rows.COLUMNS, *prediction_rows.SCORES)}
_FILE = re.compile(r"(\d+)\.rank(\d+)\.parquet")


@dataclass(frozen=True)
class Run:
    """A run's folder `rl_think`, its run.json, and its rollouts: files by step, in the order of the ranks.

    For verl's dumps the folder is theirs; `source` is the run.json that was read.
    """

    folder: Path
    about: Mapping[str, Any]
    steps: Mapping[int, list[Path]]
    source: Path

    @classmethod
    def of(cls, folder: Path) -> Run:
        """Find the rollouts of an output_dir, of verl's default_local_dir, or of verl's rollout_data_dir.

        Raises:
            UserError: no run there, one of another method, or one that kept no rollouts.
        """
        if dumped := dumped_steps(folder):
            about, source = about_dumps(folder, next(iter(dumped.values()))[0], _NEEDED)
            return cls(folder, about, dumped, source)
        inner = folder if folder.name == "rl_think" else folder / "rl_think"
        if not (inner / "run.json").is_file():
            raise UserError(
                f"{folder} is no run's folder: there is no {inner / 'run.json'}. Give the run's output_dir (TRL), its "
                "default_local_dir or its rollout_data_dir (verl)"
            )
        about = read_about(inner / "run.json")
        check_method(folder, about)
        count = about.get("num_processes")
        found: dict[int, list[tuple[int, Path]]] = {}
        for path in (inner / "rollouts").glob("*.parquet"):
            match = _FILE.fullmatch(path.name)
            # A rank that this run did not have was left by an earlier one in the same folder.
            if match and (not isinstance(count, int) or int(match[2]) < count):
                found.setdefault(int(match[1]), []).append((int(match[2]), path))
        if not found:
            raise UserError(
                f"{folder} kept no rollouts: train with `log_completions: true` (under verl "
                "rl_think.log_completions=true), and they are written at every log"
            )
        steps = {step: [path for _, path in sorted(files)] for step, files in sorted(found.items())}
        return cls(inner, about, steps, inner / "run.json")

    @property
    def method(self) -> str:
        """What was trained: "rlp" or "rlpt"."""
        return str(self.about.get("method", "rlp"))

    @property
    def model(self) -> str:
        """The model that the run began with.

        Raises:
            UserError: the run does not say.
        """
        if not isinstance(self.about.get("model"), str):
            raise UserError(f"{self.source} does not name the model that the run began with: use --model")
        return str(self.about["model"])

    def choose(self, wanted: str) -> list[int]:
        """Steps by "all", "first", "last", or numbers with commas.

        Raises:
            UserError: a step that kept no rollouts.
        """
        there = list(self.steps)
        if wanted in ("all", "first", "last"):
            return {"all": there, "first": there[:1], "last": there[-1:]}[wanted]
        listed = ", ".join(map(str, there[:12])) + (", …" if len(there) > 12 else "")
        chosen = [int(part) if part.strip().isdecimal() else -1 for part in wanted.split(",")]
        for step, part in zip(chosen, wanted.split(","), strict=True):
            if step not in self.steps:
                raise UserError(f"--steps {part.strip()}: no rollouts of that step; there are {listed}")
        return sorted(set(chosen))

    def read(self, step: int) -> list[dict[str, Any]]:
        """The samples of one step, all ranks.

        Raises:
            UserError: a file that cannot be read, or that lacks a column.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = []
        ids = IDS if self.method == "rlp" else ()
        needed = _NEEDED[self.method]
        for path in self.steps[step]:
            if path.suffix == ".jsonl":
                rows += read_dump(path, ids, tuple(name for name in needed if name not in ids))
                continue
            try:
                table = pq.read_table(path)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"could not read {path} as Parquet: {str(error).splitlines()[0]}") from error
            for column in needed:
                if column not in table.column_names:
                    raise UserError(f"{path} has no column `{column}`; there are {', '.join(table.column_names)}")
            rows += table.to_pylist()
        return rows


def next_folder(inner: Path, given: Path | None) -> Path:
    """Where a replay is written: the given folder, or the next replay-N of the run.

    Raises:
        UserError: a given folder that is not empty, or one that cannot be made.
    """
    number = 1 + max((int(p.name[7:]) for p in inner.glob("replay-*") if p.name[7:].isdecimal()), default=0)
    folder = given or inner / f"replay-{number}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: name another --output")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --output") from error
    return folder
