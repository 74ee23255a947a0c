"""The filters as datatrove pipelines: the block of docs/text-filters.md, run, gives what one machine gives."""

from __future__ import annotations

import ast
import inspect
import json
import os
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from rl_think_ext.data.datatrove_steps import Signatures, _groups, minhash_config, pipeline
from rl_think_ext.data.decontaminate import Benchmark, Decontamination
from rl_think_ext.data.near_duplicates import NearDuplicateConfig, NearDuplicates
from rl_think_ext.data.pii import Pii
from rl_think_ext.data.rules import Rules

DOCS = Path(__file__).parents[1] / "docs" / "text-filters.md"
BLOCKS = {name: code for code, name in re.findall(r"```python\n(# (\w+\.py): .*?)```", DOCS.read_text(), re.DOTALL)}
QUESTION = "How many of the seventeen sheep does the farmer bring home in the evening of that day?"


def text_of(seed: int, num_words: int = 184) -> list[str]:
    draw = random.Random(seed)
    return [f"{''.join(draw.choices('abcdefghij', k=5))}" for _ in range(num_words)]


def documents() -> list[str]:
    """200 texts: 20 near copies, 20 pairs at 0.6, and what the other filters take or mask."""
    texts = [" ".join(text_of(i)) for i in range(150)]
    texts += [f"{texts[i]} and one more" for i in range(20)]
    texts += [" ".join(text_of(i)[:-45] + text_of(1000 + i, 45)) for i in range(20, 40)]
    texts += [f"{' '.join(text_of(2000 + i))} {QUESTION}" for i in range(3)]
    texts += [f"{' '.join(text_of(3000 + i))} <|im_start|>" for i in range(3)]
    texts += [f"{' '.join(text_of(4000 + i))} mail jane{i}@mail.org" for i in range(3)]
    return [*texts, "...---..."]


def one_machine(texts: list[str], benchmark: Path) -> dict[str, str]:
    near, pii, rules = NearDuplicates(), Pii(), Rules()
    clean = Decontamination([Benchmark("quiz", str(benchmark), ("question",))])
    kept = {}
    for number, text in enumerate(texts):
        masked = pii(text)[0]
        if near.add(number, near.signature(text)) is None and clean(masked) is None and rules(masked) is None:
            kept[str(number)] = masked
    return kept


def written(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for file in sorted(folder.glob("*")) for line in file.read_text().splitlines()]
    return {row["id"]: row["text"] for row in rows}


@pytest.mark.slow
def test_the_local_pipeline_of_the_docs_keeps_what_one_machine_keeps(tmp_path: Path) -> None:
    texts = documents()
    (tmp_path / "raw").mkdir()
    for part in range(2):
        rows = [json.dumps({"id": str(i), "text": t}) for i, t in enumerate(texts) if i // 100 == part]
        (tmp_path / f"raw/{part}.jsonl").write_text("\n".join(rows))
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"question": QUESTION}))
    (tmp_path / "clean.py").write_text(BLOCKS["clean.py"])
    done = subprocess.run(
        [sys.executable, "clean.py"], cwd=tmp_path, env={**os.environ, "LOGURU_LEVEL": "ERROR"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    kept = one_machine(texts, tmp_path / "quiz.jsonl")
    assert written(tmp_path / "clean") == kept
    # 20 copies, 3 of the benchmark, 3 tokens, 1 of dashes are gone; 20 pairs at 0.6 are there.
    assert len(kept) == len(texts) - 27
    stats = json.loads((tmp_path / "logs/filters/stats.json").read_text())
    counted = {step["name"].split()[-1]: step["stats"] for step in stats}
    assert counted["PII"]["masked_email"] == 3
    assert counted["Decontamination"]["dropped_benchmark quiz"] == 3
    assert counted["Rules"]["dropped_control token"] == 3


@pytest.mark.slow
def test_clusters_leave_one_text_each(tmp_path: Path) -> None:
    """What differs: near texts in a chain are one cluster, of which one stays, whichever it is."""
    config = NearDuplicateConfig(num_perm=512)
    near = NearDuplicates(config)
    first = text_of(1)
    # J = 162/198 between neighbours, 144/216 between the ends.
    second = first[:-18] + text_of(2, 18)
    chain = [first, second, text_of(3, 18) + second[18:]]
    texts = [" ".join(text) for text in chain] + [" ".join(text_of(4))]
    (tmp_path / "raw").mkdir()
    rows = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "raw/0.jsonl").write_text("\n".join(rows))
    assert [near.add(i, near.signature(text)) for i, text in enumerate(texts)] == [None, 0, None, None]
    last = None
    writer = JsonlWriter(str(tmp_path / "clean"), compression=None)
    reader = partial(JsonlReader, str(tmp_path / "raw"))
    for stage in pipeline(reader, writer, folder=str(tmp_path / "work"), near=config):
        logs = str(tmp_path / "logs" / stage.name)
        last = LocalPipelineExecutor(stage.steps, tasks=stage.num_tasks, workers=1, logging_dir=logs, depends=last)
    assert last is not None
    last.run()
    kept = written(tmp_path / "clean").keys()
    assert "3" in kept
    assert len(kept) == 2


def test_bands_and_signatures_are_ours(tmp_path: Path) -> None:
    config = NearDuplicateConfig(num_perm=64, recall=0.9)
    given, (num, rows, num_perm) = minhash_config(config), config.bands()
    assert (given.num_buckets, given.hashes_per_bucket, given.n_grams) == (num, rows, 5)
    step = Signatures(str(tmp_path), config)
    near = NearDuplicates(config)
    text = " ".join(text_of(5))
    flat = [value for band in step.near.minima(step.near.shingles(text)).reshape(num, rows) for value in band]
    assert len(flat) == num_perm
    assert near.signature(text) == b"".join(int(value).to_bytes(4, "little") for value in flat)


def test_buckets_are_read_as_they_were_written() -> None:
    pairs = [(0, 1, 0, 5), (0, 5, 1, 2), (0, 7, 1, 3)]
    data = b"".join(number.to_bytes(4, "little") for pair in pairs for number in pair)
    assert list(_groups(data)) == [[(0, 1), (0, 5), (1, 2)], [(0, 7), (1, 3)]]
    assert list(_groups(b"")) == []


@pytest.mark.parametrize(
    ("file", "kind"), [("slurm.py", SlurmPipelineExecutor), ("on_ray.py", RayPipelineExecutor)], ids=["slurm", "ray"]
)
def test_the_other_executors_know_their_arguments(file: str, kind: type) -> None:
    tree = ast.parse(BLOCKS[file])
    (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == kind.__name__]
    names = {keyword.arg for keyword in call.keywords}
    assert names <= inspect.signature(kind).parameters.keys()
    assert {"tasks", "logging_dir", "depends"} <= names


@pytest.mark.slow
def test_rows_are_those_of_the_builder(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from rl_think_ext.data.datatrove_rows import rows_steps
    from rl_think_ext.data.rlpt import RLPTDataConfig, build

    texts = [
        " ".join(f"Sentence number {j} of text {i} says that it rained again." for j in range(3 + i % 4))
        for i in range(40)
    ]
    texts += ["Too short a text.", "A text with a <think> in it. It goes. It has to."]
    (tmp_path / "raw").mkdir()
    for part in range(2):
        rows = [json.dumps({"id": str(i), "text": t}) for i, t in enumerate(texts) if i % 2 == part]
        (tmp_path / f"raw/{part}.jsonl").write_text("\n".join(rows))
    # The tasks are drawn by a document's id, and the builder's begin with the file's name: two files may have a 0 each.
    given = {"input": str(tmp_path / "raw"), "dedup": "none", "pii": False, "rules": False, "msr_share": 1.0}
    build(RLPTDataConfig(**given, output=str(tmp_path / "one")))
    config = RLPTDataConfig(**given, output=str(tmp_path / "many"))
    steps = [JsonlReader(str(tmp_path / "raw")), *rows_steps(config)]
    LocalPipelineExecutor(steps, tasks=2, workers=1, logging_dir=str(tmp_path / "logs")).run()
    one, many = pq.read_table(tmp_path / "one/train.parquet"), pq.read_table(tmp_path / "many")
    assert many.schema.names == one.schema.names
    assert sorted(map(_content, one.to_pylist())) == sorted(map(_content, many.to_pylist()))
    stats = json.loads((tmp_path / "logs/stats.json").read_text())
    (counted,) = [step["stats"] for step in stats if step["name"].endswith("RLPT rows")]
    assert counted["rows"]["total"] == len(many) == 100
    assert counted["dropped_thinking tag in the text"] == 1 and counted["dropped_no target"] == 1


def _content(row: dict[str, Any]) -> list[str]:
    return [row["id"].rpartition("/")[2].rpartition(":")[2], *(repr(row[name]) for name in row if name != "id")]
