"""What `data.train_files` and `data.val_files` may name, and the rows behind it, each with the words for its place.

A folder that `rl-think data` built, one of its splits (`data/rlp::test`), a .parquet, .jsonl or .json file, a pattern
with a star, an address that verl can fetch, or a list of these. Rows stay on disk, memory-mapped, until they are read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import Any

from rl_think_ext.data.card import FILE
from rl_think_ext.errors import UserError

SPLIT_MARK = "::"
_KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_VALIDATION = ("test", "validation")


def name_splits(config: Any) -> None:
    """Write the split behind every bare folder of a run's config: training reads train, validation reads test.

    Where nothing is validated (`trainer.val_before_train=false`, `trainer.test_freq=-1`) `data.val_files` need not
    exist: verl builds that dataset all the same, and gets one row of the training data.

    Raises:
        UserError: no name, or a folder without the split.
    """
    data, trainer = config.data, config.trainer
    data.train_files = _with_splits(data.train_files, ("train",), "data.train_files")
    if trainer.get("val_before_train", True) or trainer.get("test_freq", -1) > 0 or trainer.get("val_only", False):
        data.val_files = _with_splits(data.val_files, _VALIDATION, "data.val_files")
    else:
        data.val_files, data.val_max_samples = list(data.train_files), 1


def files_of(data_files: Any, config: Mapping[str, Any], built_by: str = "rl-think data") -> list[tuple[str, Path]]:
    """Every file that is read, under the name that an error shows.

    Args:
        data_files: What `data.train_files` may name.
        config: verl's `data` part, which tells the side of the run.
        built_by: The command that builds such data, for errors.

    Raises:
        UserError: nothing there, a folder that both sides name, or a file of another kind.
    """
    given, train, val = (_listed(one) for one in (data_files, config.get("train_files"), config.get("val_files")))
    key, wanted = ("data.val_files", _VALIDATION) if given == val != train else ("data.train_files", ("train",))
    both = next((one for one in given if given == train == val and Path(one).expanduser().is_dir()), None)
    if both:
        raise UserError(
            f"data.train_files and data.val_files both name the folder {both}: say which split each reads, "
            f"{both}{SPLIT_MARK}train and {both}{SPLIT_MARK}test"
        )
    if not given:
        raise UserError(_no_name(key, wanted))
    return [found for one in given for found in _files(one, wanted, key, built_by)]


def folder_of(data_files: Any) -> str:
    """What the data are called: the folder, without its split, or the files."""
    return ", ".join(one.partition(SPLIT_MARK)[0] for one in _listed(data_files))


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(value)] if isinstance(value, str | Path) else [str(one) for one in value]


def _with_splits(value: Any, wanted: Sequence[str], key: str) -> list[str]:
    given = _listed(value)
    if not given:
        raise UserError(_no_name(key, wanted))
    return [
        f"{one}{SPLIT_MARK}{_split(one, wanted, key)}"
        if SPLIT_MARK not in one and Path(one).expanduser().is_dir()
        else one
        for one in given
    ]


def _no_name(key: str, wanted: Sequence[str]) -> str:
    return f"{key} names nothing to read: give a folder of `rl-think data`" + _way_out(wanted)


def _way_out(wanted: Sequence[str]) -> str:
    """What can be done where there is nothing to validate on."""
    if wanted != _VALIDATION:
        return ""
    return (
        "; build it with `--test-share 0.05`, name another file, or do not validate: trainer.val_before_train=false "
        "trainer.test_freq=-1"
    )


def _files(name: str, wanted: Sequence[str], key: str, built_by: str) -> list[tuple[str, Path]]:
    place, mark, split = name.partition(SPLIT_MARK)
    path = Path(_fetched(place)).expanduser()
    if path.is_dir():
        return _of_split(str(path), _split(str(path), (split,) if mark else wanted, key))
    if "*" in str(path):
        found = sorted(map(Path, glob(str(path))))
        if not found:
            raise UserError(f"{key}: no file is named like {name} (looked from {Path.cwd()})")
        return [(str(one), one) for one in found]
    if mark or not path.is_file():
        raise UserError(f"{key}: there is no {name} (looked from {Path.cwd()}); build it with `{built_by}`")
    if path.suffix.lower() not in _KINDS:
        raise UserError(f"{key}: {name} is no {', '.join(_KINDS)} file; build one with `{built_by}`")
    return [(name, path)]


def _fetched(name: str) -> str:
    """The local copy of what lies at an address that verl knows (hdfs://…)."""
    if "://" not in name:
        return name
    from verl.utils.fs import copy_to_local

    return str(copy_to_local(name))


def _split(folder: str, wanted: Sequence[str], key: str) -> str:
    """The first of the wanted splits that a folder has."""
    found = next((split for split in wanted if _of_split(folder, split)), None)
    if found is None:
        there = {path.name for path in Path(folder).expanduser().iterdir() if path.suffix in _KINDS} - {FILE}
        files = ", ".join(sorted(there)) or "no files"
        raise UserError(f"{key}: {folder} has no split {wanted[0]}; there are {files}{_way_out(wanted)}")
    return found


def _of_split(folder: str, split: str) -> list[tuple[str, Path]]:
    """The files of a split, as `rl-think data` writes them or as datasets on the hub are named."""
    place = Path(folder).expanduser()
    found = sorted(path for kind in _KINDS for path in place.glob(f"{split}{kind}"))
    found = found or sorted(path for kind in _KINDS for path in place.glob(f"{split}-*{kind}"))
    return [(str(path), path) for path in found]


class Rows:
    """The rows of several files as one sequence of mappings; a column that a file has not is missing from its rows.

    Args:
        files: Names and paths.

    Raises:
        UserError: a file that cannot be read, or that has no rows.
    """

    def __init__(self, files: Sequence[tuple[str, Path]]) -> None:
        self.names = [name for name, _ in files]
        self.parts = [_open(name, path) for name, path in files]
        self._ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, row = self.place(index)
        return dict(self.parts[part][row])

    def place(self, index: int) -> tuple[int, int]:
        """The number of a row's file, and the row's own number there, both from 0."""
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)

    def index(self, part: int, row: int) -> int:
        """The other way round."""
        return row + (self._ends[part - 1] if part else 0)

    def where(self, index: int, row: Mapping[str, Any] | None = None) -> str:
        """The words that name a row in an error: its file, its number from 1, its id."""
        part, number = self.place(index)
        own = (row or {}).get("id")
        return f"row {number + 1} of {self.names[part]}" + ("" if own is None else f" (id {own})")

    def require(self, *columns: str, built_by: str) -> None:
        """Refuse a file that lacks a column (F33).

        Raises:
            UserError: naming the file, the column, and those that are there.
        """
        for name, part in zip(self.names, self.parts, strict=True):
            for column in columns:
                if column not in part.column_names:
                    near = get_close_matches(column, part.column_names, 1)
                    hint = f"; did you mean `{near[0]}`?" if near else f"; `{built_by}` builds such files"
                    there = ", ".join(part.column_names)
                    raise UserError(f"{name}, row 1: column `{column}` is missing; there are {there}{hint}")


def _open(name: str, path: Path) -> Any:
    """One file as a memory-mapped `datasets.Dataset`."""
    from datasets import load_dataset

    try:
        if _is_empty(path):
            raise UserError(f"{name}: no rows")
        return load_dataset(_KINDS[path.suffix.lower()], data_files=str(path), split="train")
    except UserError:
        raise
    except Exception as error:  # datasets and pyarrow raise many kinds
        cause = error.__cause__ or error
        raise UserError(f"could not read {name}: {(str(cause).splitlines() or [type(cause).__name__])[0]}") from error


def _is_empty(path: Path) -> bool:
    """`datasets` cannot read a file of no rows."""
    if path.suffix.lower() != ".parquet":
        return path.stat().st_size == 0
    import pyarrow.parquet as pq

    return bool(pq.read_metadata(path).num_rows == 0)
