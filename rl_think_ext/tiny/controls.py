"""What RLP is compared with in the demo: next-token training on the same texts, for the same time.

`continued` reads the RL documents as plain text (continued pre-training); `worked` reads them with the worked steps
as a thought (supervised fine-tuning), which RLP never sees. Same model, optimizer and learning rate.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rl_think_ext.tiny.programs import ProgramRow, plain_text, worked_text

Control = Literal["continued", "worked"]


def train_control(
    kind: Control,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[ProgramRow],
    *,
    seconds: float,
    seed: int,
    learning_rate: float = 5e-4,
    batch: int = 128,
) -> int:
    """Train `model` in place for `seconds` of wall-clock time; returns the number of steps.

    The loss is over the whole document for "continued", and over thought and answer for "worked".
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    rng, steps, start = random.Random(seed), 0, time.monotonic()
    model.train()
    while time.monotonic() - start < seconds:
        chosen = rng.sample(list(rows), batch)
        text = [plain_text(row) if kind == "continued" else worked_text(row) for row in chosen]
        ids = tokenizer(text, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
        if kind == "worked":
            for i, row in enumerate(chosen):
                labels[i, : len(tokenizer(row["prompt"])["input_ids"])] = -100
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    model.eval()
    return steps
