"""A base that cannot read a thought gives RLP nothing to choose by; a warm start does.

    python examples/lessons/unreadable_thoughts.py

The base is pre-trained here on texts whose thoughts belong to another program: it writes thoughts as the embedded
model does, and has learned that they say nothing. RLP never trains the predictor: its loss lies on thought tokens.
In the warm start, three texts in ten are programs with their own worked steps; the rest is what it was.
"""

import random
import re
from pathlib import Path

import tyro
from miniature import TEST, TOKENIZER, finish, held_out, learn

from rl_think_ext.tiny.measure import answer
from rl_think_ext.tiny.pretrain import build_model, train
from rl_think_ext.tiny.programs import rl_rows, training_documents, worked_text


def warm_texts(num: int, share: float = 0.3) -> list[str]:
    """Texts as before, a share of them replaced by programs whose thoughts are their own worked steps."""
    rng = random.Random(0)
    pairs = zip(rl_rows(1, num), texts(num, seed=6), strict=True)
    return [worked_text(row) if rng.random() < share else text for row, text in pairs]


def texts(num: int, seed: int = 5) -> list[str]:
    """The pre-training texts of the embedded model, each with the thought of the one before it."""
    made, last = [], "<think> hmm</think>"
    for document in training_documents(seed, num):
        found = re.search(r"<think>.*</think>", document.text)
        made.append(document.text.replace(found[0], last) if found else document.text)
        last = found[0] if found else last
    return made


def main(pretraining: int = 2000, warm: int = 600, steps: int = 100) -> None:
    """Pre-train such a base; RLP on it; then a warm start, and RLP again."""
    model = build_model(TOKENIZER, seed=5)
    train(model, texts(pretraining * 32), TOKENIZER, steps=pretraining)
    result = {}
    for name in ("without a warm start", "after a warm start"):
        if name == "after a warm start":
            train(model, warm_texts(warm * 32), TOKENIZER, steps=warm)
        given = answer(model, TOKENIZER, TEST, [row["gold"] for row in TEST]).hit.float().mean().item()
        folder = Path("out/lessons", f"base {name}".replace(" ", "-"))
        model.save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
        run = learn(rl_rows(0, 20_000), f"unreadable {name}".replace(" ", "-"), str(folder), max_steps=steps)
        before, after = held_out(model, model), held_out(run.model, model)
        result[name] = {"accuracy with the right steps given": given, "before RLP": before, "after RLP": after}
        print(
            f"{name}: given the right steps it answers {given:.0%}; "
            f"RLP: gain {before['gain']:+.2f} -> {after['gain']:+.2f} nats, "
            f"accuracy {before['accuracy']:.2f} -> {after['accuracy']:.2f}"
        )
    finish("unreadable_thoughts", result)


if __name__ == "__main__":
    tyro.cli(main)
