"""What `rl-think data rlpt` costs beside bare Punkt on the same text: python benchmarks/rlpt_data.py [--out FOLDER]

Text: --input (JSON lines) over and over under other ids until there are --megabytes (10) of it, or made-up prose. Each
setting is run --runs (3) times, every run beside a pass of nltk's own `PunktSentenceTokenizer().span_tokenize` over the
same documents in the same process, and the median of the ratios is told: CPU seconds, so that a busy machine changes
less. By step as well (their sum is less than the whole: keys, counting and JSON are in none).

  samples      segments, samples and writing alone: no filter, no deduplication, no tokenizer
  filters      and tags, PII and rules, as by default
  near         and near-duplicates; made-up prose, for the texts over and over would all be duplicates
  cap          samples with a tokenizer (that of the package, as plain text) and --max-prompt-tokens (2048)
  cap, filled  the same for texts that are ten documents long, whose contexts are cut
  workers      wall time of "filters" with one process and with two, for six times the text
  memory       peak of a process (ru_maxrss) at 10 and at 100 MB, without deduplication (--memory)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rl_think_ext.tiny
from rl_think_ext.data.rlpt import RLPTDataConfig, build
from rl_think_ext.tiny.prose import prose

TOKENIZER = str(Path(rl_think_ext.tiny.__file__).parent / "text_tokenizer")
BARE: dict[str, Any] = {"dedup": "none", "pii": False, "rules": False}
PEAK = (
    "import resource, sys; from rl_think_ext.data.rlpt import RLPTDataConfig, build;"
    "build(RLPTDataConfig(input=sys.argv[1], output=sys.argv[2], dedup='none'));"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def texts_of(source: Path | None, joined: int) -> list[str]:
    """The documents of a file, or made-up ones, so many of them put together into one."""
    if source:
        found = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()]
    else:
        found = [" ".join(prose(seed, 6)) for seed in range(500)]
    return ["\n\n".join(found[i : i + joined]) for i in range(0, len(found), joined)]


def corpus(path: Path, texts: list[str], megabytes: float) -> list[str]:
    """Write the texts over and over; all documents."""
    documents: list[str] = []
    size = 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            text = texts[len(documents) % len(texts)]
            file.write(json.dumps({"id": f"d{len(documents)}", "text": text}) + "\n")
            documents.append(text)
            size += len(text.encode())
    return documents


def of_way(way: str, source: Path | None, megabytes: float) -> list[str]:
    """The documents of a setting: long ones, different ones, or those that were given."""
    if way == "near":
        return [" ".join(prose(seed, 6)) for seed in range(int(megabytes * 1800))]
    return texts_of(source, 10 if way == "cap, filled" else 1)


def punkt(documents: list[str]) -> float:
    """CPU seconds of nltk's own tokenizer."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    tokenizer = PunktSentenceTokenizer()
    start = time.process_time()
    for document in documents:
        for _ in tokenizer.span_tokenize(document):
            pass
    return time.process_time() - start


def run(source: Path, folder: Path, **settings: Any) -> tuple[float, float, dict[str, float], int]:
    """CPU and wall seconds of a build, seconds by step, and rows."""
    shutil.rmtree(folder, ignore_errors=True)
    cpu, wall = time.process_time(), time.perf_counter()
    card = build(RLPTDataConfig(input=str(source), output=str(folder), **settings))
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return *spent, dict(card.seconds), card.num_rows["train"]


def measure(source: Path, documents: list[str], folder: Path, runs: int, **settings: Any) -> dict[str, Any]:
    """Medians over runs of the ratio to Punkt, whole and by step."""
    ratios, steps, rows = [], [], 0
    for _ in range(runs):
        floor = punkt(documents)
        cpu, _, seconds, rows = run(source, folder, **settings)
        ratios.append(cpu / floor)
        steps.append({name: spent / floor for name, spent in seconds.items()})
    by_step = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    return {"ratio": statistics.median(ratios), "ratios": ratios, "steps": by_step, "rows": rows}


def workers(source: Path, folder: Path, runs: int) -> dict[str, Any]:
    """Wall seconds with one process and with two, one after the other."""
    pairs = [[run(source, folder, dedup="none", workers=number)[1] for number in (1, 2)] for _ in range(runs)]
    return {"faster": statistics.median(one / two for one, two in pairs), "seconds": pairs}


def peaks(folder: Path, texts: list[str]) -> Iterator[dict[str, Any]]:
    """Peak memory by size of the input."""
    for megabytes in (10, 100):
        source, output = folder / "memory.jsonl", folder / "memory"
        corpus(source, texts, megabytes)
        done = subprocess.run([sys.executable, "-c", PEAK, str(source), str(output)], capture_output=True, check=True)
        yield {"megabytes": megabytes, "peak_mb": int(done.stdout) / 1024}
        shutil.rmtree(output)


def main() -> None:
    """Measure everything that was asked for, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="JSON lines with a column `text`; made-up prose without it")
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--max-prompt-tokens", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peak memory at 10 and 100 MB as well")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    capped = {**BARE, "tokenizer": TOKENIZER, "form": "text", "max_prompt_tokens": given.max_prompt_tokens}
    result: dict[str, Any] = {"settings": {}}
    with tempfile.TemporaryDirectory() as name:
        source, folder, texts = Path(name, "in.jsonl"), Path(name, "out"), texts_of(given.input, 1)
        ways = {"samples": BARE, "filters": {"dedup": "none"}, "near": {}, "cap": capped, "cap, filled": capped}
        run(_small(Path(name), texts), folder, **capped)  # imports, caches
        for way, settings in ways.items():
            documents = corpus(source, of_way(way, given.input, given.megabytes), given.megabytes)
            found = result["settings"][way] = measure(source, documents, folder, given.runs, **settings)
            steps = ", ".join(f"{step} {ratio:.2f}" for step, ratio in found["steps"].items())
            print(f"{way:12} {found['ratio']:.2f} x Punkt ({steps}); {found['rows']:,} rows", flush=True)
        corpus(source, texts, 6 * given.megabytes)
        result["workers"] = workers(source, folder, given.runs)
        print(f"two workers  {result['workers']['faster']:.2f} times as fast as one", flush=True)
        if given.memory:
            result["memory"] = list(peaks(Path(name), texts))
            print(*(f"{one['megabytes']} MB: peak {one['peak_mb']:.0f} MB" for one in result["memory"]), sep="; ")
    result["machine"] = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()}
    result["machine"] |= {package: version(package) for package in ("nltk", "pyarrow", "tokenizers")}
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "rlpt_data.json").write_text(json.dumps(result, indent=2) + "\n")


def _small(folder: Path, texts: list[str]) -> Path:
    corpus(folder / "small.jsonl", texts, 0.1)
    return folder / "small.jsonl"


if __name__ == "__main__":
    main()
