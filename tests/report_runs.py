"""Folders as a run leaves them, made up: what tests/test_report*.py read, in the format that training writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl_think_ext.methods.interval import mean_interval
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.methods.rlpt import STATUSES as PREDICTION_STATUSES
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.scoring.judge import STATS

HOSTILE = (
    "</pre></style><script>alert(1)</script><img src=http://127.0.0.1:9/x onerror=alert(1)>\x00\x1b[31m\u202eabc\ud800"
)
TEXT = "One fact follows from another. So does this one! And a third, which is longer than the others. Then the end."


def log_of(num: int, *, offset: float = 0.0) -> list[dict[str, Any]]:
    """Logs of a run that learns; `offset` moves its gain."""
    return [
        {
            "step": step,
            "loss": 0.01 / step,
            "learning_rate": 1e-3 / step,
            "grad_norm": 0.5,
            "entropy": 1.0 / math.sqrt(step),
            "num_tokens": 1000.0 * step,
            "completions/max_length": 20.0,
            "frac_reward_zero_std": 0.1,
            "rlp/gain": offset + math.log(step),
            "rlp/gain_frozen": offset + math.log(step) - 0.1,
            "rlp/gain_spread": 0.5,
            "rlp/score_noise": 1e-3,
            "rlp/logprob_reasoned": -2.0 + math.log(step),
            "rlp/logprob_baseline": -2.0,
            "rlp/logprob_frozen": -2.0,
            "rlp/accuracy": 1 - 1 / step,
            "rlp/baseline_accuracy": 0.1,
            "rlp/thought_length": 10.0 + step,
            "rlp/unclosed": 0.05,
            "rlp/nested": 0.0,
            "rlp/zero_variance_groups": 0.2,
            "rlp/scoring_share": 0.15,
            "rlp/ema_distance": 0.1 * step,
            "rlp/unscorable": 0.02,
            "rlp/unscorable/empty_thought": 0.02,
            "rlp/unscorable/score_not_finite": 0.0,
        }
        for step in range(1, num + 1)
    ]


def row(step: int, gain: float | None, **other: Any) -> dict[str, Any]:
    """A row of a completions table, one sampled thought."""
    return {
        "step": step,
        "prompt": "a=1 b?<think>",
        "completion": "a=1</think>",
        "rlp": gain,
        "rlp/reasoned": None if gain is None else gain - 2.0,
        "rlp/baseline": -2.0,
        "rlp/frozen": -2.0,
        "rlp/frozen_gain": gain,
        "rlp/accuracy": None if gain is None else float(gain > 0),
        "rlp/baseline_accuracy": 0.0,
        "rlp/unscorable": "empty thought" if gain is None else None,
        "rlp/id": "doc",
        "rlp/context": "a=1 b?",
        "rlp/target": "=1",
        "advantage": 0.0,
    } | {("rlp/" + name if name in ("id", "context", "target") else name): value for name, value in other.items()}


def short_rows(step: int, base: float, num_texts: int = 12, group: int = 8) -> list[dict[str, Any]]:
    """Groups of thoughts on short texts, each a document by itself, whose gains lie around `base`."""
    return [
        row(
            step,
            base + 0.1 * (i % 5) + 0.01 * g,
            id=f"programs/{i}",
            context=f"a={i} b=a+1 b?",
            completion=f"step {step}, thought {g}</think>",
        )
        for i in range(num_texts)
        for g in range(group)
    ]


def document_rows(
    step: int, gains: Sequence[float | None], document: str = "doc7", cut: int = 0
) -> list[dict[str, Any]]:
    """Thoughts at places of TEXT, contexts cut to their last `cut` characters where that is above 0."""
    places = [i for i, char in enumerate(TEXT) if char == " "][2 : 2 + len(gains)]
    return [
        row(
            step,
            gain,
            id=f"{document}:{at}",
            context=TEXT[max(0, at - cut) if cut else 0 : at],
            target=TEXT[at : (TEXT + " ").index(" ", at + 1)],
        )
        for at, gain in zip(places, gains, strict=True)
    ]


def make_run(
    folder: Path,
    *,
    log: Sequence[Mapping[str, Any]] = (),
    tables: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    alarms: Sequence[Mapping[str, Any]] | None = None,
    measured: Mapping[str, Any] | None = None,
    **info: Any,
) -> Path:
    """Write a run's folder and return it."""
    own = folder / "rl_think"
    own.mkdir(parents=True)
    described = {
        "method": "rlp",
        "fingerprint": "8bfa69704c32",
        "settings": asdict(RLPConfig()),
        "source": "train.yaml",
        "model": "/somewhere/on/a/disk/tiny-model",
        "trainer": "ThinkGRPOTrainer",
        "arguments": {"learning_rate": 5e-4, "num_generations": 8},
        "versions": {"rl_think_ext": "0.1.0", "trl": "1.16.0"},
        "num_processes": 1,
        "dataset": {"name": "data/rlp", "num_rows": 4000, "card": None},
    }
    (own / "run.json").write_text(json.dumps(described | info))
    (own / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    if alarms is not None:
        (own / "alarms.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in alarms))
    if measured is not None:
        (own / "measured.json").write_text(json.dumps(measured))
    for step, rows in (tables or {}).items():
        (folder / "completions").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / "completions" / f"completions_{step:05d}.parquet")
    return folder


def whole_run(folder: Path, **changes: Any) -> Path:
    """A run with everything in it."""
    chosen: dict[str, Any] = {
        "log": log_of(20),
        "tables": {5: short_rows(5, -0.5), 10: short_rows(10, 0.5), 20: short_rows(20, 1.5)},
        "alarms": [{"step": 7, "alarm": "the baseline fell to -3.00 nats"}],
    }
    return make_run(folder, **(chosen | changes))


def interval(mean: float, half: float) -> dict[str, Any]:
    """An interval as a JSON file holds it."""
    return {"mean": mean, "low": mean - half, "high": mean + half, "num_values": 1024, "num_clusters": 1024}


def held_out() -> dict[str, Any]:
    """measured.json of a run that learned."""
    before = {"gain": interval(-0.15, 0.05), "accuracy": interval(0.15, 0.02), "direct_accuracy": interval(0.1, 0.02)}
    after = {"gain": interval(2.15, 0.04), "accuracy": interval(0.98, 0.01), "direct_accuracy": interval(0.11, 0.02)}
    thought = {"id": "t/1", "context": "a=1 b=a+2 b?", "target": "=3", "before": "hmm", "after": "a=1 b=a+2=3"}
    return {
        "rows": 1024,
        "what": "held-out programs",
        "before": before,
        "after": after,
        "ceiling": math.log(10),
        "thoughts": [thought],
    }


def make_gain(folder: Path, base: float = 1.0) -> Path:
    """A folder of an offline measurement of one document of four places and two thoughts each."""
    folder.mkdir(parents=True)
    made = [(*r["rlp/id"].rpartition(":")[::2], r) for r in document_rows(0, [base, base - 0.5, -base, None])]
    rows = [
        {
            "id": r["rlp/id"],
            "document": document,
            "position": int(position),
            "context": r["rlp/context"],
            "target": r["rlp/target"],
            "sample": sample,
            "thought": f"thought {sample}",
            "gain": r["rlp"],
            "baseline": -2.0,
            "accuracy": r["rlp/accuracy"],
            "baseline_accuracy": 0.0,
            "unscorable": r["rlp/unscorable"],
        }
        for document, position, r in made
        for sample in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    found = mean_interval([r["gain"] for r in rows], [r["position"] for r in rows])
    summary = {
        "kind": "gain",
        "model": "tiny-model",
        "data": "corpus.jsonl",
        "settings": {"num_thoughts": 2},
        "versions": {"rl_think_ext": "0.1.0"},
        "verdict": "no evidence that thinking helps",
        "num_documents": 1,
        "num_positions": 4,
        "num_samples": 8,
        "clustered_by": "position",
        "gain": asdict(found),
        "accuracy": interval(0.5, 0.2),
        "baseline_accuracy": interval(0.0, 0.0),
        "by_position": [
            {"from": 0.0, "to": 0.5, "gain": interval(0.4, 0.1)},
            {"from": 0.5, "to": 1.0, "gain": {"mean": -1.0, "low": None, "high": None}},
        ],
        "unscorable": {"empty thought": 2},
    }
    (folder / "gain.json").write_text(json.dumps(summary))
    return folder


def keep_rollouts(folder: Path, step: int, rows: Sequence[Mapping[str, Any]], rank: int = 0) -> Path:
    """Write what a rank of a run keeps of a batch beside TRL's table: scores in float32."""
    path = folder / "rl_think" / "rollouts" / f"{step:07d}.rank{rank}.parquet"
    path.parent.mkdir(exist_ok=True)
    scores = pa.array([r["rlp/reasoned"] for r in rows], pa.float32())
    pq.write_table(pa.table({"step": [step] * len(rows), "reasoned": scores}), path)
    return path


# --- RLMT ---

PLAN, SAID = "What is asked: a sum. Say it shortly.", "It is 4."
STATUSES = ("ok", "no_open", "no_close", "empty_thought", "empty_response", "extra_tags", "truncated")


def rlmt_log(num: int, *, offset: float = 0.0, thinks: bool = True) -> list[dict[str, Any]]:
    """Logs of an RLMT run whose score rises."""
    bad = {"no_close": 0.2, "truncated": 0.1}
    return [
        {
            "step": step,
            "loss": 0.01 / step,
            "learning_rate": 1e-6,
            "grad_norm": 0.5,
            "entropy": 1.0 / math.sqrt(step),
            "kl": 1e-3 * step,
            "num_tokens": 1000.0 * step,
            "completions/max_length": 900.0 + 20 * step,
            "completions/clipped_ratio": 0.1 / step,
            "frac_reward_zero_std": 0.1,
            "reward": offset + math.log(step) - 1,
            "reward_std": 0.7,
            "rewards/rlmt/mean": offset + math.log(step) - 1,
            "rewards/rlmt/std": 0.7,
            "rlmt/score": offset + math.log(step),
            "rlmt/score_spread": 0.8,
            "rlmt/zero_variance_groups": 0.1 / step,
            **{f"rlmt/status/{name}": bad.get(name, 0.0) / step for name in STATUSES},
            "rlmt/status/ok": 1 - 0.3 / step,
            "rlmt/thought_length": 120.0 + 10 * step if thinks else None,
            "rlmt/answer_length": 300.0 + 15 * step,
            "rlmt/truncated": 0.1 / step,
            "rlmt/no_score": 0.0,
            "rlmt/unscorable": 0.0,
            "rlmt/prompts_cut": 0.01,
            "rlmt/below_floor": 0.0,
            "rlmt/score_noise": 1e-3,
            "rlmt/scoring_seconds": 2.0 + 0.1 * step,
            "rlmt/scoring_share": 0.2,
            "rlmt/reward_model_seconds": 1.8 + 0.1 * step,
            "rlmt/reward_model_num_asked": 60.0,
            "rlmt/reward_model_num_cached": 4.0,
        }
        for step in range(1, num + 1)
    ]


def rlmt_row(step: int, score: float | None, prompt: Any = "2 + 2?", **other: Any) -> dict[str, Any]:
    """A row of a completions table of RLMT; without a score the output has not the form."""
    ok = score is not None
    return {
        "step": step,
        "prompt": prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": f"<think>\n{PLAN}\n</think>\n\n{SAID}" if ok else "<think>No"}],
        "rlmt": score if ok else -3.0,
        "rlmt/thought": PLAN if ok else None,
        "rlmt/answer": SAID if ok else None,
        "rlmt/status": "ok" if ok else "no_close",
        "rlmt/score": score,
        "rlmt/unscorable": None if ok else "malformed: no_close",
        "advantage": 0.0,
    } | {(f"rlmt/{name}" if name in ("thought", "answer", "status") else name): value for name, value in other.items()}


def rlmt_rows(step: int, base: float, *, bad: int = 0, num_prompts: int = 12, group: int = 8) -> list[dict[str, Any]]:
    """Groups of outputs whose scores lie around `base`; the first `bad` of each group have not the form."""
    return [
        rlmt_row(
            step,
            None if g < bad else base + 0.1 * (i % 5) + 0.01 * g,
            f"What is {i} + {step}?",
            **({} if g < bad else {"answer": f"{SAID} " * (i + step), "thought": f"{PLAN} step {step}, output {g}"}),
        )
        for i in range(num_prompts)
        for g in range(group)
    ]


def without_thoughts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same rows as a run of style none leaves them."""
    return [{**r, "completion": [{"role": "assistant", "content": SAID}], "rlmt/thought": None} for r in rows]


def rlmt_run(folder: Path, *, thinks: bool = True, **changes: Any) -> Path:
    """An RLMT run with everything in it, or its control without a thought."""
    tables = {5: rlmt_rows(5, -0.5, bad=2), 20: rlmt_rows(20, 1.5)}
    chosen: dict[str, Any] = {
        "log": rlmt_log(20, thinks=thinks),
        "tables": tables if thinks else {step: without_thoughts(rows) for step, rows in tables.items()},
        "method": "rlmt",
        "trainer": "RLMTTrainer",
        "settings": asdict(RLMTConfig(style="think" if thinks else "none", reward_model="/a/disk/tiny-reward-model")),
        "dataset": {"name": "data/prompts", "num_rows": 7544, "card": None},
    }
    return make_run(folder, **(chosen | changes))


# --- RLPT ---

TRUTH = "It rained on the hill. We ran home."


def rlpt_log(num: int) -> list[dict[str, Any]]:
    """Logs of an RLPT run whose predictions get better, and keep their length."""
    judge = {**dict.fromkeys(STATS, 0.0), "latency_p50": 0.4, "latency_p95": 0.9, "canary_right_accepted": 1.0}
    return [
        {
            "step": step,
            "loss": 0.01 / step,
            "learning_rate": 1e-6,
            "grad_norm": 0.5,
            "entropy": 1.0 / math.sqrt(step),
            "num_tokens": 1000.0 * step,
            "completions/max_length": 300.0,
            "reward": 1 - 0.8 / step,
            "rewards/rlpt/mean": 1 - 0.8 / step,
            "rlpt/score": 1 - 0.8 / step,
            "rlpt/asr/score": 1 - 0.9 / step,
            "rlpt/msr/score": 1 - 0.7 / step,
            "rlpt/asr/share": 0.5,
            "rlpt/msr/share": 0.5,
            "rlpt/asr/covered": 1.4,
            "rlpt/msr/covered": 1.0,
            "rlpt/score_spread": 0.4,
            "rlpt/zero_variance_groups": 0.2,
            **{f"rlpt/status/{name}": 0.0 for name in PREDICTION_STATUSES},
            "rlpt/status/ok": 1 - 0.3 / step,
            "rlpt/status/no_open": 0.2 / step,
            "rlpt/status/too_short": 0.1 / step,
            "rlpt/length": 200.0 + step,
            "rlpt/prediction_length": 12.0,
            "rlpt/prediction_chars": 50.0,
            "rlpt/segments_covered": 1.2,
            "rlpt/segments_covered_right": 1.3,
            "rlpt/prediction_repetition": 0.0,
            "rlpt/prediction_copied": 0.01,
            "rlpt/truncated": 0.0,
            "rlpt/no_verdict": 0.01,
            "rlpt/unscorable": 0.01,
            "rlpt/scoring_seconds": 2.0,
            "rlpt/scoring_share": 0.2,
            **{f"rlpt/judge_{name}": value for name, value in judge.items()},
            "rlpt/judge_num_asked": 60.0,
            "rlpt/judge_no_verdict/timeout": 2.0,
        }
        for step in range(1, num + 1)
    ]


def rlpt_row(step: int, score: float | None, context: str = "Dark clouds.", **other: Any) -> dict[str, Any]:
    """A row of a completions table of RLPT."""
    prompt = f"Complete the text provided under ### Context {context}"
    prediction = {1.0: "It rained on the hill.", 0.0: "The sun shone."}.get(-1.0 if score is None else score, "It did.")
    return {
        "step": step,
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": f"So <|startofprediction|>{prediction}<|endofprediction|>"}],
        "rlpt": score,
        "rlpt/id": context,
        "rlpt/task": "asr",
        "rlpt/status": "ok",
        "rlpt/prediction": prediction,
        "rlpt/reference": TRUTH,
        "rlpt/score": score,
        "rlpt/unscorable": "judge: timeout" if score is None else None,
        "rlpt/covered": len(prediction) / 22,
        "advantage": 0.0,
    } | {f"rlpt/{name}": value for name, value in other.items()}


def rlpt_rows(step: int, right: int, num_texts: int = 12, group: int = 8) -> list[dict[str, Any]]:
    """Groups of predictions of which the first `right` say what follows."""
    return [
        rlpt_row(step, float(g < right), f"Text {i}. Dark clouds came over the hill.")
        for i in range(num_texts)
        for g in range(group)
    ]


def rlpt_run(folder: Path, **changes: Any) -> Path:
    """An RLPT run with everything in it."""
    chosen: dict[str, Any] = {
        "log": rlpt_log(20),
        "tables": {5: rlpt_rows(5, 1), 20: rlpt_rows(20, 7)},
        "method": "rlpt",
        "trainer": "RLPTTrainer",
        "settings": asdict(RLPTConfig(server="http://localhost:8000", judge_model="/a/disk/tiny-judge")),
        "dataset": {"name": "data/rlpt", "num_rows": 4000, "card": None},
    }
    return make_run(folder, **(chosen | changes))


def trainer_run(folder: Path, trainer: str, num: int = 9) -> Path:
    """What SFT and DPO leave: run.json and the trainer's own state."""
    common = {"loss": 0.7, "grad_norm": 1.0, "learning_rate": 4e-6, "entropy": 1.0}
    own = {
        "SFTTrainer": {"mean_token_accuracy": 0.6},
        "DPOTrainer": {
            "rewards/accuracies": 0.6,
            "rewards/margins": 0.1,
            "rewards/chosen": 0.2,
            "rewards/rejected": 0.1,
        },
    }
    log = [{"step": step, **common, **own[trainer], "epoch": step / num} for step in range(1, num + 1)]
    make_run(folder, method="rlmt", trainer=trainer, settings=asdict(RLMTConfig()))
    (folder / "rl_think" / "log.jsonl").unlink()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return folder
