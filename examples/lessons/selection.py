"""RLP selects a way of thinking that the base already has now and then; it does not invent one.

    python examples/lessons/selection.py

First the embedded model: how often it writes the right steps by itself, and for how many programs at least once in
64 samples. Then a base from the same corpus without the worked (and wrong) steps inside thoughts: it has seen the
same steps as plain text and answers as well without a thought, but never thinks in steps. RLP on both.
"""

from pathlib import Path

import tyro
from miniature import TEST, TOKENIZER, base, finish, held_out, learn

from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.measure import sample_thoughts
from rl_think_ext.tiny.pretrain import build_model, train
from rl_think_ext.tiny.programs import classify_thought, rl_rows, training_documents


def right_steps(model, num_samples: int) -> tuple[float, float]:
    """Share of sampled thoughts that are the right steps, and of programs where at least one sample is."""
    found = [
        [
            classify_thought(said, row["gold"]) == "correct"
            for said, row in zip(sample_thoughts(model, TOKENIZER, TEST, seed=seed), TEST, strict=True)
        ]
        for seed in range(num_samples)
    ]
    each = [sum(column) for column in zip(*found, strict=True)]
    return sum(each) / (num_samples * len(each)), sum(count > 0 for count in each) / len(each)


def without_steps(pretraining: int, seed: int = 5) -> str:
    """A base that never saw steps inside a thought; the folder it was saved in."""
    texts = [d.text for d in training_documents(seed, pretraining * 48) if d.kind not in ("steps", "wrong")]
    model = build_model(TOKENIZER, seed)
    train(model, texts, TOKENIZER, steps=pretraining)
    folder = Path("out/lessons/base-without-steps")
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def main(steps: int = 100, num_samples: int = 64, pretraining: int = 2000) -> None:
    """Count right steps before and after RLP on both bases."""
    result = {}
    for name in ("has the mode", "lacks the mode"):
        folder = str(PROGRAMS_MODEL) if name == "has the mode" else without_steps(pretraining)
        start = base(folder)
        share, covered = right_steps(start, num_samples)
        run = learn(rl_rows(0, 20_000), f"selection {name}".replace(" ", "-"), folder, max_steps=steps)
        before, after = held_out(start, start), held_out(run.model, start)
        result[name] = {"right steps": share, "programs covered": covered, "before": before, "after": after}
        print(
            f"base {name}: right steps in {share:.1%} of its thoughts, for {covered:.0%} of the programs at least once "
            f"in {num_samples}; after RLP in {after['correct']:.1%} of the thoughts, "
            f"gain {before['gain']:+.2f} -> {after['gain']:+.2f} nats, "
            f"accuracy {before['accuracy']:.2f} -> {after['accuracy']:.2f}"
        )
    finish("selection", result)


if __name__ == "__main__":
    tyro.cli(main)
