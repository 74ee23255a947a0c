"""Takes each protected fix out of a copy of the tree and demands that the named test turns red; `make mutants`.

A mutant is `tests/mutants/NAME.patch`: two lines, then a diff for `git apply`.

    # test: tests/test_rlp.py::test_advantage_counts_the_scorable
    # takes out: n_valid in eq. 7

Killed means: the test passes without the patch, and with it pytest exits with 1 because an assertion or an error of the
code under test failed; a test that is missing, skipped, timed out or can no longer import is not a kill. Compiled
modules are taken along as installed; a patch that touches compiled sources builds its copy's anew (20 s).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from queue import Queue
from typing import NamedTuple

PACKAGE = "rl_think_ext"
COMPILED = f"{PACKAGE}/kernels/csrc/"
# How pytest's message begins; a syntax error begins with its place.
NOT_A_KILL = ("ImportError", "ModuleNotFoundError", "NameError", 'File "')

# The finder of an editable install wins over PYTHONPATH, also in the processes that a test starts; `site` runs this
# file after the finder is in place, in every Python that inherits the environment.
SITECUSTOMIZE = """\
import os, sys
def editable(finder):
    return getattr(finder, "__module__", type(finder).__module__).startswith(("_editable_", "__editable__"))
sys.meta_path[:] = [f for f in sys.meta_path if not editable(f)]
sys.path[:] = [p for p in sys.path if os.path.realpath(p) != {root!r}]
"""


# What nearly every test imports before it begins, and more than half of a mutant's time.
SLOW_TO_IMPORT = (
    "numpy", "torch", "torch._dynamo", "pandas", "pyarrow.parquet", "datasets", "transformers:AutoTokenizer,Trainer",
    "transformers.models.qwen3.modeling_qwen3", "transformers.models.llama.modeling_llama", "peft", "hypothesis",
    "trl:GRPOTrainer,SFTTrainer,DPOTrainer", "hydra", "verl.trainer.ppo.v1", "httpx", "matplotlib.pyplot", "tyro",
    "rich.console",
)  # fmt: skip
# As conftest.py has them: libraries read them when they are imported.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"} | {
    "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1",
}  # fmt: skip


class Mutant(NamedTuple):
    name: str
    patch: Path
    test: str
    takes_out: str


class Verdict(NamedTuple):
    word: str
    detail: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What one pytest run said."""

    status: int | None  # None: timed out
    num_tests: int
    num_skipped: int
    failures: list[str]
    tail: str

    @property
    def all_passed(self) -> bool:
        return self.status == 0 and self.num_tests > 0 and self.num_skipped == 0


def read_mutant(patch: Path) -> Mutant:
    """Raises SystemExit, naming the file, when one of the two lines is missing."""
    lines = [*patch.read_text(encoding="utf-8").splitlines(), "", ""]
    values = []
    for number, key in enumerate(("test", "takes out")):
        prefix = f"# {key}: "
        if not lines[number].startswith(prefix):
            raise SystemExit(f"{patch}: line {number + 1} is `{prefix}...`, got {lines[number]!r}")
        values.append(lines[number].removeprefix(prefix).strip())
    return Mutant(patch.stem, patch, *values)


def choose(mutants: list[Mutant], names: list[str]) -> list[Mutant]:
    known = {mutant.name: mutant for mutant in mutants}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise SystemExit(f"no mutant {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return [known[name] for name in names] if names else mutants


class Trees:
    """Copies of the tracked and untracked files of `root`, each with the certainty that Python imports from it."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.site = folder / "site"
        self.site.mkdir()
        (self.site / "sitecustomize.py").write_text(SITECUSTOMIZE.format(root=str(root)), encoding="utf-8")
        self.pristine = folder / "pristine"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            self._take(root / name, self.pristine / name)
        for path, name in installed_extensions():
            self._take(path, self.pristine / name)

    @staticmethod
    def _take(source: Path, target: Path) -> None:
        if source.is_file():  # a tracked file may be deleted
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)

    def copy(self, name: str) -> Path:
        tree = self.folder / "trees" / name
        shutil.copytree(self.pristine, tree)
        return tree

    def check(self) -> None:
        """One look is enough for all copies: each is put in front of the path in the same way."""
        tree = self.copy("looked-at")
        found = subprocess.run(
            [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"],
            cwd=self.folder, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(self.site), str(tree)])},
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        if not Path(found).resolve().is_relative_to(tree):
            raise SystemExit(
                f"{PACKAGE} is imported from {found}, not from the copy {tree}: no verdict would mean anything"
            )


def installed_extensions() -> Iterable[tuple[Path, Path]]:
    """Compiled modules beside the installed package: an editable install keeps them out of the tree."""
    for entry in map(Path, sys.path):
        for path in (entry / PACKAGE).rglob("*.so"):
            yield path, path.relative_to(entry)


def build(tree: Path) -> str:
    """Compile the modules of a tree and lay them into its package; what went wrong, or nothing."""
    with tempfile.TemporaryDirectory(prefix="mutant-build-") as folder:
        command = [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder,
            "-C", "cmake.define.RL_THINK_CUDA=OFF", "-C", f"build-dir={folder}/build", str(tree),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return done.stdout + done.stderr
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".so"):
                    (tree / name).unlink(missing_ok=True)
                    archive.extract(name, tree)
    return ""


class Warm:
    """A process that has imported what is slow to import; each test runs in a fork of it."""

    def __init__(self, trees: Trees, modules: Iterable[str]) -> None:
        self.trees = trees
        environment = OFFLINE | os.environ | {"PYTHONPATH": str(trees.site), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "warm.py"), *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=trees.folder,
        )  # fmt: skip

    def run(self, tree: Path, tests: list[str], timeout: float) -> Outcome:
        report, log = (tree.parent / f"{tree.name}.{suffix}" for suffix in ("xml", "log"))
        args = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        request = {"tree": str(tree), "path": [str(tree)], "args": args, "log": str(log), "timeout": timeout}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the process that runs the tests has ended")
        status = json.loads(answer)
        if status is None:
            return Outcome(None, 0, 0, [], f"timed out after {timeout:.0f} s")
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
        report.unlink(missing_ok=True)
        return Outcome(
            status=status,
            num_tests=len(cases),
            num_skipped=sum(case.find("skipped") is not None for case in cases),
            failures=[found.get("message", "") for case in cases for found in case.findall("failure")],
            tail="\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]),
        )

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def red_without_patch(warm: Warm, tree: Path, tests: list[str], timeout: float) -> dict[str, str]:
    """The named tests that do not pass as the tree stands, and what they said."""
    if warm.run(tree, tests, timeout * len(tests)).all_passed:
        return {}
    red = {}
    for test in tests:
        outcome = warm.run(tree, [test], timeout)
        if not outcome.all_passed:
            red[test] = outcome.tail
    return red


def red_everywhere(trees: Trees, warms: Queue[Warm], tests: list[str], args: argparse.Namespace) -> dict[str, str]:
    """The same for all tests, a share in each process."""
    jobs = list(warms.queue)
    shares = [tests[i :: len(jobs)] for i in range(len(jobs))]
    found = {}
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [
            pool.submit(red_without_patch, warm, trees.copy(f"unpatched-{i}"), share, args.timeout)
            for i, (warm, share) in enumerate(zip(jobs, shares, strict=True))
            if share
        ]
        for one in running:
            found |= one.result()
    return found


def judge(trees: Trees, warms: Queue[Warm], timeout: float, red: dict[str, str], mutant: Mutant) -> Verdict:
    if mutant.test in red:
        return Verdict("RED WITHOUT IT", red[mutant.test])
    tree = trees.copy(f"mutant-{mutant.name}")
    applied = subprocess.run(
        ["git", "apply", "--verbose", str(mutant.patch)],
        # Without the ceiling, `git apply` below some repository skips every file and succeeds.
        cwd=tree, env=os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if applied.returncode != 0 or "Applied patch" not in applied.stderr:
        return Verdict("DOES NOT APPLY", applied.stderr.strip())
    begin = time.monotonic()
    if COMPILED in mutant.patch.read_text(encoding="utf-8") and (wrong := build(tree)):
        return Verdict("DOES NOT BUILD", wrong)
    warm = warms.get()
    try:
        outcome = warm.run(tree, [mutant.test], timeout)
    finally:
        warms.put(warm)
    shutil.rmtree(tree)
    word = read_outcome(outcome)
    return Verdict(word, "" if word == "killed" else outcome.tail, time.monotonic() - begin)


def read_outcome(outcome: Outcome) -> str:
    if outcome.status is None:
        return "TIMED OUT"
    if outcome.status == 0:
        return "SURVIVED"
    real = [message for message in outcome.failures if not message.lstrip().startswith(NOT_A_KILL)]
    return "killed" if outcome.status == 1 and real else "BROKEN"


def print_table(verdicts: dict[Mutant, Verdict]) -> None:
    width = max(len(mutant.name) for mutant in verdicts)
    for mutant, verdict in verdicts.items():
        print(f"{mutant.name:<{width}}  {verdict.word:<14}  {verdict.seconds:5.1f} s  {mutant.takes_out}")
    for mutant, verdict in verdicts.items():
        if verdict.word != "killed":
            print(f"\n== {mutant.name}: {verdict.word}\n   test: {mutant.test}\n{verdict.detail}")
    num_killed = sum(verdict.word == "killed" for verdict in verdicts.values())
    print(f"\n{num_killed} of {len(verdicts)} mutants killed")


def share(text: str) -> tuple[int, int]:
    """Two numbers out of `1/3`."""
    first, _, step = text.partition("/")
    if not (first.isdecimal() and step.isdecimal() and int(first) < int(step)):
        raise argparse.ArgumentTypeError(f"{text}: expected I/N with I below N, for example 0/3")
    return int(first), int(step)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="just this mutant; repeatable")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="mutants at a time (2)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one test (300)")
    parser.add_argument("--skip-compiled", action="store_true", help="leave out what is compiled anew, 40 s each")
    parser.add_argument("--share", type=share, default=(0, 1), metavar="I/N", help="every Nth, from the Ith, from 0")
    parser.add_argument("--cold", action="store_true", help="import nothing ahead of the tests")
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help="the repository (this one)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    root = args.root.resolve()
    mutants = choose([read_mutant(patch) for patch in sorted((root / "tests" / "mutants").glob("*.patch"))], args.only)
    if args.skip_compiled:
        mutants = [mutant for mutant in mutants if COMPILED not in mutant.patch.read_text(encoding="utf-8")]
    first, step = args.share
    mutants = mutants[first::step]
    if not mutants:
        raise SystemExit(f"no mutants in {root / 'tests' / 'mutants'}")
    if args.list:
        print("\n".join(f"{mutant.name}: {mutant.takes_out} ({mutant.test})" for mutant in mutants))
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = Trees(root, Path(folder).resolve())
        trees.check()
        warms: Queue[Warm] = Queue()
        for _ in range(args.jobs):
            warms.put(Warm(trees, () if args.cold else SLOW_TO_IMPORT))
        red = red_everywhere(trees, warms, sorted({mutant.test for mutant in mutants}), args)
        work: Callable[[Mutant], Verdict] = partial(judge, trees, warms, args.timeout, red)
        with ThreadPoolExecutor(args.jobs) as pool:
            verdicts = dict(zip(mutants, pool.map(work, mutants), strict=True))
        for warm in warms.queue:
            warm.close()
    print_table(verdicts)
    return 0 if all(verdict.word == "killed" for verdict in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
