"""Pre-train the miniature model from scratch: `python -m rl_think_ext.tiny.pretrain --out DIR --seed N`.

2,000 steps are about 150 seconds on one core. The folder can be loaded by transformers, TRL and verl, and
`pretrain.json` in it says how it came to be. Nothing here looks at the test part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from rl_think_ext.tiny.measure import answer, measure
from rl_think_ext.tiny.programs import held_out_rows, training_documents
from rl_think_ext.tiny.tokenizer import build_tokenizer

DEV_SEED, DEV_ROWS = 0, 512
_IGNORE = -100


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of 0.34 M parameters with random weights, and generation settings that stop at `</think>`."""
    torch.manual_seed(seed)
    close = tokenizer.convert_tokens_to_ids("</think>")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=24,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        # The usual 0.02 stays on a plateau at this width: the arithmetic is not learned in 2,000 steps.
        initializer_range=0.08,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=[tokenizer.eos_token_id, close], pad_token_id=tokenizer.pad_token_id
    )
    return model


def train(
    model: Qwen3ForCausalLM,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
) -> float:
    """Next-token training on the texts in order, each read once; returns the mean loss of the last 50 steps, in nats.

    Raises:
        ValueError: fewer texts than `steps * batch_size`.
    """
    if len(texts) < steps * batch_size:
        raise ValueError(f"{steps} steps of {batch_size} need {steps * batch_size} texts, got {len(texts)}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    losses: list[float] = []
    for step in (bar := tqdm(range(steps), desc="pre-training", unit="step")):
        loss = _loss(model, tokenizer, texts[step * batch_size : (step + 1) * batch_size])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])


def dev_metrics(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """`measure` on the dev part, and the accuracy when the worked steps are given."""
    rows = held_out_rows("dev", DEV_SEED, DEV_ROWS)
    given = answer(model, tokenizer, rows, [row["gold"] for row in rows])
    return {**measure(model, tokenizer, rows), "gold_accuracy": given.hit.float().mean().item()}


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path, record: dict[str, object]) -> None:
    """Model, tokenizer and the record of the run, with the hashes of what was written."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    hashes = {name: sha256(out / name) for name in ("model.safetensors", "tokenizer.json")}
    (out / "pretrain.json").write_text(json.dumps({**record, "sha256": hashes}, indent=2) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The hash of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the documents")
    parser.add_argument("--steps", type=int, default=2000, help="of 32 documents each")
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given)
    torch.set_num_threads(1)  # more threads are slower at this size, and change the last bits
    started = time.monotonic()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.seed)
    texts = [document.text for document in training_documents(args.seed, args.steps * 32)]
    final_loss = train(model, texts, tokenizer, steps=args.steps)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    record = {
        "command": shlex.join(["python", "-m", "rl_think_ext.tiny.pretrain", *given]),
        "seed": args.seed,
        "steps": args.steps,
        "documents": len(texts),
        "parameters": model.num_parameters(),
        "final_loss": round(final_loss, 4),
        "seconds": round(time.monotonic() - started, 1),
        "dev": {name: round(value, 4) for name, value in dev_metrics(model, tokenizer).items()},
        "versions": versions,
    }
    save(model, tokenizer, args.out, record)
    print(json.dumps(record, indent=2))


def _rate(step: int, steps: int) -> float:
    """Warm-up over 100 steps, constant, then down to 5 % over the last 40 %."""
    left = 1 - step / steps
    return min(1.0, (step + 1) / 100) * (0.05 + 0.95 * min(1.0, left / 0.4))


def _loss(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    batch = tokenizer(list(texts), padding=True, return_tensors="pt", padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, _IGNORE)
    return model(**batch, labels=labels).loss


if __name__ == "__main__":
    main()
