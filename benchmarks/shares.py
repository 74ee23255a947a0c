"""Which share of a real training step the head and the log-probs are: python benchmarks/shares.py [--out FOLDER]

Trains a 105 M-parameter Qwen3 from config (tied embedding, vocabulary 151,936, float32) with ThinkGRPOTrainer on random
tokens: a prompt, a group of thoughts, target tokens. Hand timers lie around the parts of every optimizer step:

  sampling    model.generate; "head" is lm_head inside it
  scoring     the reward: "reasoned" is S_pred of the thoughts, "baseline" the EMA's, "frozen" the start's, each with
              its weights swapped in and out, and "head" is lm_head and the log-probs behind it; "metrics" are what is
              logged, checksums of all weights among it
  policy      forward and backward of the loss; "head" is the head and the log-probs: forward, and backward from the
              loss to the gradient of the hidden states (the head is the first that the backward meets)
  optimizer   AdamW, and the averages' update
  rest        the step's time that none of them explains

In one run the steps alternate: TRL's own chunked head in the policy loss, then what `logprob_kernel: true` puts there.
Nothing is sampled that closes a thought (the weights are random), so every thought has its full length. Printed and
written as JSON: the medians over the steps of seconds and of the shares of a step; the first step of each way warms up
and is dropped.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from datasets import Dataset
from scoring import VOCAB, model_100m
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback

from rl_think_ext.kernels import available_backends
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.scoring import likelihood
from rl_think_ext.template import CLOSE_TAG, OPEN_TAG
from rl_think_ext.trl import ThinkGRPOConfig, ThinkGRPOTrainer, policy_logprob

PARTS = (
    "sampling",
    "sampling head",
    "scoring",
    "scoring reasoned",
    "scoring reasoned head",
    "scoring baseline",
    "scoring baseline head",
    "scoring frozen",
    "scoring frozen head",
    "scoring metrics",
    "policy",
    "policy head forward",
    "policy head backward",
    "optimizer",
    "rest",
)
WAYS = ("trl", "kernels")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds() -> float:
    """The clock that `--clock` names."""
    return CLOCKS[given.clock]()


class Clock:
    """Seconds of each part within each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.now: dict[str, float] = defaultdict(float)
        self.inside: list[str] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time inside to a part; `inside` says which parts are open."""
        self.inside.append(name)
        start = seconds()
        try:
            yield
        finally:
            self.now[name] += seconds() - start
            self.inside.remove(name)

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Puts a timer around a function."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return original(*args, **kwargs)

        setattr(owner, name, timed)


class Steps(TrainerCallback):
    """Begins and ends the steps, each with the other head; what lies between two steps (logging) is in none."""

    def __init__(self, clock: Clock, model: Any, forwards: dict[str, Any]) -> None:
        self.clock, self.model, self.forwards = clock, model, forwards
        self.start = self.optimizer = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.model.forward = self.forwards[WAYS[state.global_step % len(WAYS)]]
        self.clock.now.clear()
        self.start = seconds()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.optimizer = seconds()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = self.clock.now
        now["optimizer"] = seconds() - self.optimizer
        now["step"] = seconds() - self.start
        now["rest"] = now["step"] - sum(now[name] for name in ("sampling", "scoring", "policy", "optimizer"))
        self.clock.steps.append(dict(now))


def tokenizer() -> PreTrainedTokenizerFast:
    """A word for every id of the vocabulary, and the tags of one token each."""
    words = [OPEN_TAG, CLOSE_TAG, "<eos>", "<pad>", *(f"w{i}" for i in range(4, VOCAB))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def rows(num: int, prompt: int, targets: int) -> Dataset:
    """Random contexts and targets; the prompt that is trained on has the opening tag behind its context."""
    ids = torch.randint(4, VOCAB, (num, prompt - 1 + targets), generator=torch.Generator().manual_seed(1)).tolist()
    texts = [[f"w{i}" for i in row] for row in ids]
    return Dataset.from_list(
        [
            {
                "prompt": " ".join(words[: prompt - 1]) + f" {OPEN_TAG}",
                "context": " ".join(words[: prompt - 1]),
                "target": " " + " ".join(words[prompt - 1 :]),
                "context_ids": row[: prompt - 1],
                "target_ids": row[prompt - 1 :],
            }
            for words, row in zip(texts, ids, strict=True)
        ]
    )


def trainer_of(given: argparse.Namespace, folder: str) -> ThinkGRPOTrainer:
    """The real trainer; one group is one micro-batch."""
    args = ThinkGRPOConfig(
        folder,
        max_steps=len(WAYS) * (given.steps + 1),
        per_device_train_batch_size=given.group,
        num_generations=given.group,
        max_completion_length=given.thought,
        learning_rate=1e-6,
        bf16=False,
        gradient_checkpointing=given.checkpointing,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    config = RLPConfig(num_target_tokens=given.targets, score_noise_share=0.0)
    words = tokenizer()
    model = model_100m()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 3
    data = rows(len(WAYS) * (given.steps + 1), given.prompt, given.targets)
    return ThinkGRPOTrainer(model, args, rlp=config, train_dataset=data, processing_class=words)


def put_timers(trainer: ThinkGRPOTrainer, clock: Clock) -> Callable[[], None]:
    """Timers around the parts; returns what takes those on modules away again."""
    clock.wrap(trainer.model, "generate", "sampling")
    clock.wrap(trainer, "_calculate_rewards", "scoring")
    clock.wrap(trainer.information_gain, "_log_metrics", "scoring metrics")
    prepare = trainer._prepare_inputs

    def prepared(inputs: Any) -> Any:
        found = prepare(inputs)
        clock.now["policy from"] = seconds()
        return found

    trainer._prepare_inputs = prepared
    time_scoring(trainer, clock)
    time_head(trainer.model.get_output_embeddings(), clock)
    undo = time_chunked_head(clock)
    whole = trainer.training_step

    def policy(*args: Any, **kwargs: Any) -> Any:
        found = whole(*args, **kwargs)
        clock.now["policy"] += seconds() - clock.now["policy from"]
        return found

    trainer.training_step = policy
    backward = trainer.accelerator.backward

    def timed_backward(*args: Any, **kwargs: Any) -> Any:
        clock.now["backward from"] = seconds()
        return backward(*args, **kwargs)

    trainer.accelerator.backward = timed_backward
    return undo


def time_scoring(trainer: ThinkGRPOTrainer, clock: Clock) -> None:
    """Who is scored: the order within a reward call is reasoned, baseline, frozen, each within its swap."""
    begin = trainer.information_gain._start

    def start() -> Any:
        scorer = begin()
        for name in ("baseline", "frozen"):
            swap = getattr(scorer, name)

            @contextmanager
            def timed(swap: Any = swap, name: str = name) -> Iterator[None]:
                with clock.part(f"scoring {name}"), swap():
                    yield

            setattr(scorer, name, timed)
        score = scorer.likelihood

        def scored(*args: Any, **kwargs: Any) -> Any:
            if {"scoring baseline", "scoring frozen"} & set(clock.inside):
                return score(*args, **kwargs)
            with clock.part("scoring reasoned"):
                return score(*args, **kwargs)

        scorer.likelihood = scored
        return scorer

    trainer.information_gain._start = start


def time_head(head: torch.nn.Module, clock: Clock) -> None:
    """lm_head as a module: in sampling, in scoring, and in the policy loss where it is called there."""
    started: list[float] = []

    def before(module: Any, args: Any) -> None:
        if args[0].requires_grad:
            args[0].register_hook(lambda grad: head_backward(clock, grad))
        started.append(seconds())

    def after(module: Any, args: Any, out: Any) -> None:
        whose = f"{clock.inside[-1]} head" if clock.inside else "policy head forward"
        clock.now[whose] += seconds() - started.pop()

    head.register_forward_pre_hook(before)
    head.register_forward_hook(after)


def head_backward(clock: Clock, grad: Any) -> Any:
    """The gradient of the hidden states is there: the backward has passed the head."""
    clock.now["policy head backward"] += seconds() - clock.now["backward from"]
    return grad


def time_chunked_head(clock: Clock) -> Callable[[], None]:
    """TRL's chunked head and the scorer's log-prob, which are functions and no modules."""
    chunked, plain = trl_utils._ChunkedLogProbFunction, likelihood.masked_logprob

    class Timed:
        @staticmethod
        def apply(hidden: torch.Tensor, *rest: Any) -> Any:
            if hidden.requires_grad:
                hidden.register_hook(lambda grad: head_backward(clock, grad))
            with clock.part("policy head forward"):
                return chunked.apply(hidden, *rest)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with clock.part(f"{clock.inside[-1]} head"):
            return plain(*args, **kwargs)

    trl_utils._ChunkedLogProbFunction, likelihood.masked_logprob = Timed, timed

    def undo() -> None:
        trl_utils._ChunkedLogProbFunction, likelihood.masked_logprob = chunked, plain

    return undo


def measure(given: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """By way: medians of seconds, and of shares of the step, of every part."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(given, folder)
        forwards = {"trl": trainer.model.forward}
        policy_logprob.install_all(trainer)
        forwards["kernels"] = trainer.model.forward
        undo = put_timers(trainer, clock)
        trainer.add_callback(Steps(clock, trainer.model, forwards))
        try:
            trainer.train()
        finally:
            undo()
    found = {}
    for i, way in enumerate(WAYS):
        steps = clock.steps[len(WAYS) + i :: len(WAYS)]
        found[way] = {
            "seconds": {part: statistics.median(s.get(part, 0.0) for s in steps) for part in ("step", *PARTS)},
            "share": {part: statistics.median(s.get(part, 0.0) / s["step"] for s in steps) for part in PARTS},
        }
    return found


def run(given: argparse.Namespace) -> None:
    """Measure, print and write."""
    torch.set_num_threads(given.threads)
    results = measure(given)
    print("| part | " + " | ".join(f"{way}: s | share" for way in WAYS) + " |")
    print("|---" * (1 + 2 * len(WAYS)) + "|")
    for part in PARTS:
        cells = (f"{results[way]['seconds'][part]:.3f} | {100 * results[way]['share'][part]:.1f} %" for way in WAYS)
        print(f"| {part} | " + " | ".join(cells) + " |")
    print("| step | " + " | ".join(f"{results[way]['seconds']['step']:.3f} | 100 %" for way in WAYS) + " |")
    about = {
        "settings": {k: v for k, v in vars(given).items() if k != "out"},
        "vocabulary": VOCAB,
        "backends": available_backends(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "shares.json"
    path.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--steps", type=int, default=5, help="steps that are counted, of each way")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt, its opening tag included")
    parser.add_argument("--thought", type=int, default=128, help="tokens of a thought")
    parser.add_argument("--group", type=int, default=4, help="thoughts of a prompt")
    parser.add_argument("--targets", type=int, default=32, help="target tokens that a reward covers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing in the body")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: with one thread, on a machine that is busy"
    )
    given = parser.parse_args()
    run(given)
