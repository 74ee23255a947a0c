"""A policy in this process as the one who answers a builder's questions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl_think_ext.data.asking import OnReply, Question, Texts
from rl_think_ext.data.lengths import NO_RENDERING, Lengths
from rl_think_ext.formats import ZERO_INSTRUCTIONS
from rl_think_ext.template import CLOSE_RESPONSE

if TYPE_CHECKING:
    from rl_think_ext.data.rlmt_dpo import RLMTDPODataConfig


class LocalAsker:
    """Samples from a folder or hub name, on the accelerator when there is one.

    Args:
        config: The model, lengths, style and seed.
        lengths: Renders the chats.
        temperature: Of sampling.
        num_samples: Texts of one reply.
    """

    def __init__(self, config: RLMTDPODataConfig, lengths: Lengths, temperature: float, num_samples: int) -> None:
        import torch

        from rl_think_ext.scoring.complete import Completer
        from rl_think_ext.scoring.load import load_model

        self.lengths, self.num_samples = lengths, num_samples
        self._special = lengths.style in ZERO_INSTRUCTIONS
        on_gpu = torch.cuda.is_available()
        model = load_model(config.model, dtype="auto" if on_gpu else "float32")
        self.completer = Completer(
            model.to("cuda") if on_gpu else model,
            lengths.tokenizer,
            max_new_tokens=config.max_tokens,
            stop=CLOSE_RESPONSE if self._special else None,
            temperature=temperature,
            max_tokens=config.max_batch_tokens,
            seed=config.seed,
        )
        self.fingerprint = fingerprint(config.model)

    def __call__(self, questions: Sequence[Question], on_reply: OnReply) -> None:
        """Sample for all of them, in batches; a question's reply is there when all its outputs are."""
        from rl_think_ext.scoring.complete import Completion
        from rl_think_ext.scoring.sample import Request

        prompts = [self._ids(question, index, on_reply) for index, question in enumerate(questions)]
        places = [(i, k) for i, ids in enumerate(prompts) if ids for k in range(self.num_samples)]
        requests = [Request(prompts[i], f"{questions[i].key}/{k}") for i, k in places]
        waiting: dict[int, dict[int, Completion]] = {}
        for place, completion in self.completer(requests):
            i, k = places[place]
            found = waiting.setdefault(i, {})
            found[k] = completion
            if len(found) == self.num_samples:
                ordered = [found[k] for k in range(self.num_samples)]
                num_written = sum(c.num_tokens for c in ordered)
                ends = [c.finished for c in ordered]
                on_reply(i, Texts([c.text for c in ordered], ends, len(prompts[i]), num_written))
                del waiting[i]

    def _ids(self, question: Question, index: int, on_reply: OnReply) -> tuple[int, ...]:
        text = self.lengths.render(question.messages)
        if text is None:
            on_reply(index, f"{NO_RENDERING}: {self.lengths.refusals[-1]}")
            return ()
        return tuple(self.lengths.tokenizer(text, add_special_tokens=self._special)["input_ids"])


def fingerprint(name: str) -> str:
    """A model's name, and for a folder what tells its weights from others: their files, sizes and times."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors"))
    return f"{folder.name} {hashlib.sha256(repr(files).encode()).hexdigest()}"
