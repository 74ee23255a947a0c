"""What is written beside the rows, and the folder that they appear in: whole or not at all."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from rl_think_ext.data.cells import printable, storable
from rl_think_ext.errors import UserError

FILE = "card.json"


class Words(NamedTuple):
    """What the rows of a method are called in its card."""

    title: str
    rows: str
    units: str = "prompts"
    units_out: str = "Prompts left out"
    rows_out: str = "Rows left out"


WORDS = {
    "rlp": Words(
        "Contexts and targets for RLP",
        "Each row is one position of one text: what is read, and what follows.",
        "documents",
        "Documents left out",
        "Positions left out",
    ),
    "rlpt": Words(
        "Segments for RLPT",
        "Each row is one segment of one text that is to be predicted: what the policy is asked, and the reference that "
        "a judge compares its prediction with. Positions count in the text with its masks.",
        "documents",
        "Documents left out",
        "Segments that are no targets",
    ),
    "rlmt": Words("Prompts for RLMT", "Each row is one chat that ends with a user's message."),
    "rlmt-sft": Words(
        "Plans and answers of a teacher for RLMT's warm start",
        "Each row is a chat, the plan that a teacher made for it (thought) and its answer.",
        rows_out="Replies refused",
    ),
    "rlmt-dpo": Words(
        "Preference pairs for RLMT",
        "Each row is a chat with the best and the worst of several outputs, as a reward model judges their answers.",
        rows_out="Prompts without a pair",
    ),
}


@dataclass(frozen=True)
class Card:
    """Counts, settings and versions of a built dataset; no absolute path and no secret goes in here (F39).

    `num_rows` is by split (a split of none has no file), `skipped_*` by reason: documents (or prompts) that were not
    used, and positions (or replies, or pairs). `counts` are a method's own, tokens and cost among them; `steps` of a
    pipeline say how many documents came, how many went on, and why the others did not. `content_hash` is the sha256 of
    the rows in their order. `seconds` by step, of all processes, are told and not stored: no two builds share them.
    """

    method: str
    source: str
    seed: int
    num_documents: int
    num_rows: Mapping[str, int]
    content_hash: str
    skipped_documents: Mapping[str, int] = field(default_factory=dict)
    skipped_positions: Mapping[str, int] = field(default_factory=dict)
    num_cut_contexts: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, str] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    def write(self, folder: Path) -> None:
        """Put card.json and README.md into a folder."""
        values = dataclasses.asdict(self)
        del values["seconds"]
        text = json.dumps(values, indent=2, ensure_ascii=False, sort_keys=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")
        (folder / "README.md").write_text(self.readme(), encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> Card:
        """The card of a built folder.

        Raises:
            UserError: no card there, or one that this version cannot read.
        """
        try:
            return cls(**json.loads(Path(folder, FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{Path(folder).name} is no dataset of rl-think data: no {FILE} that can be read"
            ) from error

    def readme(self) -> str:
        """The dataset card: YAML that tells `datasets` the splits, then tables for people."""
        splits = "".join(
            f"      - split: {name}\n        path: {name}.parquet\n" for name, n in self.num_rows.items() if n
        )
        # `datasets` caches by these lines and the folder's name alone: without the hash a folder that was built anew,
        # or another one of the same name, would silently be the old one.
        content = f"    description: rows of sha256 {self.content_hash}\n"
        configs = f"configs:\n  - config_name: default\n{content}    data_files:\n{splits}"
        words = WORDS.get(self.method, WORDS["rlp"])
        counts = {words.units: self.num_documents, **{f"rows in {k}": n for k, n in self.num_rows.items()}}
        drawn = self.method in ("rlp", "rlpt")
        if drawn:
            counts["contexts cut on the left"] = self.num_cut_contexts
        seed = f", seed {self.seed}" if drawn else ""
        parts = [
            f"---\n{configs}---\n\n# {words.title}\n",
            f"Built from {_code(self.source)} by `rl-think data {self.method}`{seed}. {words.rows}\n",
            _table("Counts", {**counts, **self.counts}),
            _steps(self.steps),
            _table(words.units_out, self.skipped_documents),
            _table(words.rows_out, self.skipped_positions),
            _table("Tokenizer", self.tokenizer or {}),
            _table("Settings", self.settings),
            _table("Versions", self.versions),
            f"Content hash: `{self.content_hash}`\n",
        ]
        return "\n".join(part for part in parts if part)


def _code(value: object) -> str:
    """Inline code of one line, whatever stands in the value."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return "`" + " ".join(text.replace("`", "'").replace("|", "/").split()) + "`"


def _table(title: str, rows: Mapping[str, Any]) -> str:
    lines = "".join(f"| {name} | {_code(value)} |\n" for name, value in rows.items())
    return f"## {title}\n\n| | |\n|---|---|\n{lines}" if rows else ""


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
    """What each step of a pipeline took out, as a table."""
    lines = [
        f"| {step['step']} | {step['came']} | {step['went_on']} | "
        f"{_code(', '.join(f'{reason}: {number}' for reason, number in step['left_out'].items()) or '-')} |\n"
        for step in steps
    ]
    head = "## Steps\n\n| step | documents that came | that went on | left out |\n|---|---|---|---|\n"
    return head + "".join(lines) if lines else ""


class ContentHash:
    """sha256 over rows as canonical JSON lines, each under the name of its split."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        """Take one row in; the order of its columns does not matter."""
        line = json.dumps(row, sort_keys=True, separators=(",", ":"))
        self._digest.update(f"{split}\t{line}\n".encode())

    def hexdigest(self) -> str:
        """64 hex digits."""
        return self._digest.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, as they go into a card."""
    return {name: metadata.version(name) for name in packages}


def keep_apart(given: str, output: str) -> None:
    """An output inside the input would be read by the next build; the other way round it would delete the input.

    Raises:
        UserError: they lie in one another, or the output is no name.
    """
    if "\0" in output or not output.strip():
        raise UserError("the output is empty or holds a NUL character; name a folder")
    if not storable(output):
        raise UserError(f"the output {printable(output)} is no text in this system's encoding; name another folder")
    source, made = Path(given.replace("\0", "")), Path(os.path.realpath(output))
    if source.exists():
        source = source.resolve()
        if source == made or source in made.parents or made in source.parents:
            raise UserError(f"input {given} and output {output} lie in one another; name another output")


@contextmanager
def whole_folder(output: str, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that takes its final name only when the block ends well (F35).

    It lies beside `output`, is written to disk before the rename, and is removed when the block raises. After a
    kill the next call removes it. `overwrite` replaces a folder only when it holds a card, so that a slip of the
    keyboard does not delete someone's photographs.

    Raises:
        UserError: the place cannot be written to, or something stands there already.
    """
    target = Path(os.path.abspath(output))
    try:
        partial, lock = _start(target, output, overwrite)
        try:
            yield partial
            _finish(partial, target, overwrite)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        raise UserError(f"could not write to {output}: {error.strerror or error}") from error


def _start(target: Path, output: str, overwrite: bool) -> tuple[Path, int]:
    if not target.name or target.is_symlink():
        raise UserError(f"{output} cannot be the output: name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    if target.exists() and not target.is_dir():
        raise UserError(f"the output {output} is a file; name a new folder")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise UserError(f"the output folder {output} is not empty; name another one, or pass overwrite")
        if not (target / FILE).is_file():
            raise UserError(f"the output folder {output} holds no {FILE}, so it is no built dataset and stays as it is")
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:12]}")
    partial.mkdir()
    return partial, hold(partial)


def hold(folder: Path) -> int:
    """Hold a folder for as long as this process lives, so that another build does not take it for a left-over."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _recover(target: Path) -> None:
    """Clear up after a build that was killed: what it began goes, what it was about to replace comes back."""
    for old in beside(target, "old"):
        if target.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, target)
    for partial in beside(target, "partial"):
        try:
            handle = hold(partial)
        except OSError:
            continue  # another build is at work
        shutil.rmtree(partial)
        os.close(handle)


def beside(target: Path, kind: str) -> list[Path]:
    """The hidden folders of a kind that builds of a target left beside it."""
    # Not glob: the name may hold brackets.
    prefix = f".{target.name}.{kind}-"
    return sorted(path for path in target.parent.iterdir() if path.name.startswith(prefix) and path.is_dir())


def _finish(partial: Path, target: Path, overwrite: bool) -> None:
    for path in [*partial.iterdir(), partial]:
        _sync(path)
    old = target.with_name(f".{target.name}.old-{uuid.uuid4().hex[:12]}")
    if overwrite and (target / FILE).is_file():
        os.rename(target, old)
    # A rename onto a folder that someone filled meanwhile fails, which is what it should do.
    os.rename(partial, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
