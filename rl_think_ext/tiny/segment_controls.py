"""What RLPT is compared with: next-token training on the same documents, for the same time.

`mixed` reads the documents and, as often, the tasks with the worked steps and the right prediction (supervised
fine-tuning, mixed with pre-training); RLPT never sees these steps. `continued` reads the documents alone. Same start,
optimizer and learning rate.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from rl_think_ext.tiny.segment_examples import Chat, output
from rl_think_ext.tiny.segment_training import Loaded, chat_loss
from rl_think_ext.tiny.segments import Document, prompt

Control = Literal["mixed", "continued"]
CONTROLS: tuple[Control, ...] = get_args(Control)
PACKED = 3


def worked(rng: random.Random, document: Document) -> Chat:
    """One task about a document, with the worked steps and the very sentence that stands there."""
    target = rng.choice(document.targets)
    asked = document.segment(rng.choice(["asr", "msr"]), target)
    return Chat(prompt(asked), output(rng, document, target, {"right": 1.0}, one_more=0.0))


def plain(rng: random.Random, documents: Sequence[Document]) -> Chat:
    """Some documents as pre-training reads them, one after another, as long as a task."""
    return Chat(None, "<|im_end|>".join(document.text for document in rng.sample(documents, PACKED)))


def train_control(
    kind: Control,
    policy: Loaded,
    documents: Sequence[Document],
    *,
    seconds: float,
    seed: int,
    learning_rate: float = 5e-4,
    batch: int = 32,
) -> int:
    """Train a policy in place for `seconds` of CPU time, which a busy machine does not change; returns its steps."""
    model, tokenizer = policy
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    rng, steps, start = random.Random(seed), 0, time.process_time()
    model.train()
    while time.process_time() - start < seconds:
        chats = [
            worked(rng, rng.choice(documents)) if kind == "mixed" and i % 2 else plain(rng, documents)
            for i in range(batch)
        ]
        loss = chat_loss(model, tokenizer, chats)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    model.eval()
    return steps
