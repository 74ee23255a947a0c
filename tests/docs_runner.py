"""Finds what the pages show and runs it as a reader would: blocks, commands, files, a stage; test_docs.py says how.

A stage is a folder that looks like a checkout to a command, with the files that the page itself shows.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LANGUAGES = ("sh", "python", "yaml", "json", "text")
# Commands that are looked at where they stand within a sentence, too.
PROGRAMS = ("rl-think", "make", "python", "pip", "trl", "torchrun", "ray")
# Their words are checked, and they are not run: one installs, the other starts servers that stay.
NOT_RUN = ("pip", "ray")
_FENCE = re.compile(r"^```(\S*)[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w/.-]+\.(?:yaml|py))\b")
_BEHIND_OUTPUT = re.compile(r"--(?:output|select)[= ](\S+)")
_IN_STAGE = (
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    "benchmarks",
    "docs",
    "examples",
    "recipes",
    "rl_think_ext",
    "tests",
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its fence, what it is written in, and its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Where a reader finds it."""
        shown = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name
        return f"{shown}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that this block is, where its first line says so: `# run.yaml: …`."""
        found = _FILE.match(self.text)
        return found[1] if found and self.language in ("yaml", "python") else None


@dataclass(frozen=True)
class Command:
    """How a command that begins with `starts` runs here: `behind` is put behind it; `slow` if it takes long even so."""

    starts: str
    behind: str = ""
    slow: bool = False


@dataclass(frozen=True)
class Prop:
    """Something that pages take for granted; `make(stage)` leaves it under its name, and it needs what it `brings`."""

    make: Callable[[Stage], Any]
    slow: bool = False
    brings: tuple[str, ...] = ()


def cells_of(page: Path) -> list[str]:
    """The text of a page: of the whole file, or of a notebook's text cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return [text]
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    text = "\n\n".join(cells_of(page))
    found = [Block(page, text[: m.start()].count("\n") + 1, m[1], m[2]) for m in _FENCE.finditer(text)]
    assert len(found) * 2 == len(re.findall(r"^ *```", text, re.MULTILINE)), f"{page}: a fence is open or indented"
    for block in found:
        assert block.language in LANGUAGES, f"{block.name}: nobody knows how to run ```{block.language}"
    return found


def spans(page: Path) -> list[str]:
    """The commands that stand within sentences, in backticks."""
    text = _FENCE.sub("", "\n\n".join(cells_of(page)))
    found = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    return [span for span in found if span.split()[0] in PROGRAMS and len(span.split()) > 1]


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block as words: continued lines joined, comments left out, `&&` taken apart."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            one, words = words[:end], words[end + 1 :]
            strange = [word for word in one if word in ("|", ">", ">>", "<", ";", "||", "&", "cd")]
            assert not strange, f"{block.name}: `{strange[0]}` needs a shell; show plain commands"
            yield one


def rule_of(words: Sequence[str], rules: Sequence[Command], where: str) -> Command:
    """The first rule whose beginning this command has; an unknown command is an error of the page."""
    line = " ".join(dropwhile(_is_setting, words))
    found = [rule for rule in rules if f"{line} ".startswith(f"{rule.starts} ")]
    assert found, (
        f"{where}: nobody knows how to run `{line}`; add it to COMMANDS in tests/test_docs.py, or mend the page"
    )
    return found[0]


@dataclass(frozen=True)
class Machine:
    """What this machine has instead of what a page names: words, keys of a run's YAML, and props."""

    words: Mapping[str, str]
    keys: Mapping[str, Any]
    props: Mapping[str, Prop]

    def adapted(self, text: str, is_run: bool = False) -> str:
        """A page's text with the words that this machine lacks exchanged, a run's YAML with the keys that it needs."""
        for word, other in self.words.items():
            text = text.replace(word, other)
        if is_run:
            lines = [
                f"{key}: {value}\n"
                for key, value in self.keys.items()
                if not re.search(rf"^{key}:", text, re.MULTILINE)
            ]
            text += "".join(lines)
        return text

    def needed(self, text: str) -> list[str]:
        """The props that a text speaks of, without what its own commands write."""
        own = _BEHIND_OUTPUT.findall(text)
        return [name for name in self.props if _speaks_of(text, name) and name not in own]


@dataclass
class Stage:
    """A folder for the commands of one block, with the page's own files and the props that they need."""

    folder: Path
    machine: Machine
    made: dict[str, Path]

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in _IN_STAGE:
            (self.folder / name).symlink_to(ROOT / name)
        (self.folder / ".venv").symlink_to(Path(sys.executable).parents[1])

    def dress(self, block: Block) -> None:
        """Put the files of the page that this block speaks of on the stage, and the props that they all need."""
        text, written = self.machine.adapted(block.text), set()
        files = {other.file: other for other in blocks(block.page) if other.file and other.file != block.file}
        while new := [name for name in files if name not in written and _speaks_of(text, name.removesuffix(".py"))]:
            for name in new:
                shown = self.machine.adapted(files[name].text, is_run="model_name_or_path:" in files[name].text)
                (self.folder / name).write_text(shown, encoding="utf-8")
                text += shown
                written.add(name)
        for name in self.machine.needed(text):
            if name not in written:
                self.place(name)

    def place(self, name: str) -> None:
        """Make a prop once, and copy it here."""
        if name not in self.made:
            room = Stage(self.folder.parent / f"{self.folder.name}-{len(self.made)}", self.machine, self.made)
            self.machine.props[name].make(room)
            self.made[name] = room.folder / name
        source, target = self.made[name], self.folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        for other in self.machine.props[name].brings:
            self.place(other)

    def run(self, words: Sequence[str], where: str, timeout: float = 300) -> str:
        """Run a command here, offline; what it says. A status other than 0 is an error of the page."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        env |= dict(word.split("=", 1) for word in takewhile(_is_setting, words))
        words = list(dropwhile(_is_setting, words))
        done = subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, timeout=timeout)
        shown = done.stdout[-3000:] + done.stderr[-3000:]
        assert done.returncode == 0, f"{where}: `{shlex.join(words)}` ended with {done.returncode}:\n{shown}"
        return done.stdout + done.stderr


def _speaks_of(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w-]|\.(?:py|yaml|jsonl|txt)\b)", text) is not None


def _is_setting(word: str) -> bool:
    """Whether a word is `NAME=value` in front of a command."""
    return re.fullmatch(r"[A-Z_]+=.*", word) is not None
