"""The dataset of a run: there without a download, with its columns, rows that can be read and that have room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from rl_think_ext.cli.doctor.case import BlockedError, Case, Finding, once
from rl_think_ext.cli.doctor.config import arguments, file, method
from rl_think_ext.cli.doctor.model import NotCachedError, local_folder, positions, tokenizer
from rl_think_ext.data.reader import Reader
from rl_think_ext.errors import UserError
from rl_think_ext.template import TagIds

# Larger folders are streamed: `datasets` would first copy them whole into its cache.
_LOADED_WHOLE = 256 * 2**20
_ROWS_READ = 64


@once("the dataset")
def rows(case: Case) -> Any:
    """The training split, streamed where it is large."""
    from rl_think_ext.trl.rows import load_rows

    script = arguments(case).script
    if not script.dataset_name:
        raise BlockedError("`dataset_name:`")
    place = local_folder(script.dataset_name, "dataset")
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    streamed = bool(script.dataset_streaming) or size > _LOADED_WHOLE
    with quiet_datasets():
        splits = load_rows(str(place), script.dataset_config, streamed, **_wanted(case))
    split = script.dataset_train_split
    if split not in splits:
        raise UserError(f"{script.dataset_name} has no split `{split}`; there are {', '.join(splits)}")
    return splits[split]


def _wanted(case: Case) -> dict[str, Any]:
    """The columns that the run needs, and what builds them."""
    if file(case).method == "rlp":
        return {}
    if file(case).method == "rlpt":
        from rl_think_ext.data.segment_rows import REQUIRED

        return {"required": REQUIRED, "built_by": "rl-think data rlpt"}
    from rl_think_ext.trl.rlmt_launch import BUILT_BY, COLUMNS

    kind: Any = file(case).trainer
    return {"required": COLUMNS[kind], "built_by": BUILT_BY[kind]}


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No bars of `datasets` between the findings."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


@once("the reader of rows")
def reader(case: Case) -> Reader:
    """The reader that the reward would use."""
    return Reader(tokenizer(case), method(case)[0], TagIds.of(tokenizer(case)))


def check_dataset(case: Case) -> Iterator[Finding]:
    """The dataset has the columns, and its first rows can be read by this tokenizer."""
    name = arguments(case).script.dataset_name
    try:
        found = rows(case)
    except NotCachedError:
        text = f"The dataset {name} is taken as a hub name and is not in the cache; nothing is downloaded here."
        yield Finding("unchecked", "dataset", text, f"Fetch it first: hf download --repo-type dataset {name}")
        return
    count = f"{len(found):,} rows" if hasattr(found, "__len__") else "streamed rows"
    yield Finding("ok", "dataset", f"{name}: {count} with the columns {', '.join(found.column_names)}.")


def check_rows(case: Case) -> Iterator[Finding]:
    """The first rows through the reader, and the longest against the model's positions."""
    from datasets import Dataset

    from rl_think_ext.trl.rows import check_lengths

    found, read, completion = rows(case), reader(case), arguments(case).args.max_completion_length
    longest = num = 0
    for num, row in enumerate(islice(found, _ROWS_READ), start=1):
        where = f"row {row.get('id') or num - 1}"
        longest = max(longest, len(read.prompt(row, read.context(row, where), where)))
        if not read.target(row, where):
            yield Finding("warn", "rows", f"{where} has no target and would be unscorable.", "Build the data anew.")
    room = positions(case)
    # A streamed dataset has no length: what was read of it stands for it.
    whole = hasattr(found, "__len__")
    check_lengths(found if whole else Dataset.from_list(list(islice(found, _ROWS_READ))), read, room, completion)
    which = "all rows" if whole else "these"
    fits = f"{which} fit into {room} positions with thoughts of {completion}" if room else "the model names no limit"
    yield Finding("ok", "rows", f"The first {num} rows can be read, prompts up to {longest} tokens; {fits}.")
