"""Samples, an engine, a config and verl's router for tests of what reward workers and agent loops do, without Ray."""

from __future__ import annotations

import asyncio
import copy
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from reward_models import reward_tokenizer


def save_policy_tokenizer(folder: Path) -> Path:
    """A tokenizer alone, of a policy that may be told to think; for tests that do not sample."""
    tokenizer = reward_tokenizer("qwen")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def compose_stock(method: str, *overrides: str) -> Any:
    """verl's whole config with a method's settings, as hydra makes it."""
    import hydra

    places = ["hydra.searchpath=[pkg://rl_think_ext.verl.config]", f"+rl_think={method}"]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", [*places, *overrides])


def changed(config: Any, **keys: Any) -> Any:
    """A copy with other values, `a__b` for a.b."""
    found = copy.deepcopy(config)
    for key, value in keys.items():
        OmegaConf.update(found, key.replace("__", "."), value, force_add=True)
    return found


def sample_of(
    tokenizer: Any, text: str, chat: Any, prompt: str = "assistant\n", pad: int = 0, ended: bool = True, **row: Any
) -> Any:
    """One sample as an agent loop sends it, out of its texts."""
    asked = tokenizer.encode(prompt, add_special_tokens=False)
    said = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * ended
    return of_ids(asked, said, chat, pad, **row)


def of_ids(asked: list[int], said: list[int], chat: Any, pad: int = 0, **row: Any) -> Any:
    """One sample out of its ids; with `pad` as a colocated reward model gets it, both sides filled up."""
    from tensordict import TensorDict
    from verl import DataProto

    filler = [7] * pad
    batch = {
        "prompts": torch.tensor([asked + filler]),
        "responses": torch.tensor([said + filler]),
        "attention_mask": torch.tensor([[1] * len(asked) + [0] * pad + [1] * len(said) + [0] * pad]),
    }
    chats = np.empty(1, dtype=object)
    chats[0] = chat
    rows = {name: np.array([value], dtype=object) for name, value in row.items()}
    return DataProto(batch=TensorDict(batch, batch_size=1), non_tensor_batch={"raw_prompt": chats, **rows})


def run_all(manager: Any, samples: Sequence[Any]) -> list[dict[str, Any]]:
    """What a reward manager says of samples that come at once."""

    async def main() -> list[dict[str, Any]]:
        return await asyncio.gather(*(manager.run_single(sample) for sample in samples))

    return asyncio.run(main())


def put_queue(monkeypatch: Any, queue: Any) -> None:
    """Let trainers of ours work on a queue in this process, without workers that compute log-probs."""
    from verl.trainer.ppo.v1 import trainer_base

    from rl_think_ext.verl import reward_trainer, rlpt_trainer, trainer

    for module in (trainer_base, trainer, reward_trainer, rlpt_trainer):
        monkeypatch.setattr(module, "tq", queue)
    monkeypatch.setattr(trainer_base.PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: batch)


def of_a_row(row: dict[str, Any]) -> torch.Tensor:
    """The one advantage of a sample's tokens; 0 where none is trained."""
    trained = row["advantages"][row["response_mask"] > 0].double()
    assert not len(trained) or bool((trained == trained[0]).all())
    return trained[0] if len(trained) else torch.tensor(0.0, dtype=torch.float64)


def kept_by_the_loop(responses: Sequence[Sequence[int]], told: Sequence[Any], size: int) -> dict[str, dict[str, Any]]:
    """What verl's agent loop keeps of outputs in groups of a size after a reward manager has seen each of them."""
    rows = {}
    for i, (ids, said) in enumerate(zip(responses, told, strict=True)):
        mask, reward = torch.ones(len(ids), dtype=torch.int64), torch.zeros(len(ids))
        reward[-1] = said["reward_score"]
        rows[f"g{i // size}_{i % size}_0"] = {
            "uid": f"g{i // size}", "response_mask": mask, "loss_mask": mask, "rm_scores": reward,
            "extra_fields": {"reward_extra_info": said["reward_extra_info"]},
        }  # fmt: skip
    return rows


def settled_by(kind: Any, config: Any, settings: Any, stored: dict[str, Any], monkeypatch: Any, estimator: str) -> Any:
    """Rewards and advantages of stored samples by verl's own code behind a trainer of ours; they come in any order."""
    from fake_queue import FakeQueue
    from transfer_queue import KVBatchMeta

    queue = FakeQueue(copy.deepcopy(stored))
    put_queue(monkeypatch, queue)
    trainer = object.__new__(kind)
    trainer.config, trainer.settings = changed(config, algorithm__adv_estimator=estimator), settings
    trainer.scores, trainer.columns, trainer._quiet, trainer._failed = {}, {}, [], 0
    order = list(queue.rows)
    random.Random(1).shuffle(order)
    batch = KVBatchMeta(keys=order, tags=[{"is_padding": False} for _ in order], partition_id="train")
    batch = trainer._compute_old_log_prob(batch, {})
    trainer._compute_advantage(batch, {})
    values = [trainer.scores[key].value for key in stored]
    rewards = torch.tensor([np.nan if value is None else value for value in values], dtype=torch.float64)
    return rewards, torch.stack([of_a_row(queue.rows[key]) for key in stored])


@contextmanager
def router_before(stub: Any) -> Iterator[str]:
    """The address of verl's own router before a stub that stands for the engine."""
    import uvicorn
    from verl.experimental.reward_loop.router.naive_router import NaiveRouter

    app = NaiveRouter(worker_urls=[stub.url]).app
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        pass
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(5)


class Engine:
    """Says what a test says, and keeps what it was asked."""

    def __init__(self, ids: Sequence[int], logprobs: bool = True) -> None:
        self.ids, self.logprobs = ids, logprobs
        self.asked: list[tuple[list[int], dict[str, Any]]] = []

    async def generate(self, request_id: str, *, prompt_ids: Any, sampling_params: Any, priority: int = 0) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        self.asked.append((prompt_ids, sampling_params))
        values = [-0.5 * i for i in range(len(self.ids))] if self.logprobs else None
        return TokenOutput(token_ids=list(self.ids), log_probs=values, extra_fields={"min_global_steps": 1})


def loop_of(kind: Any, config: Any, engine: Engine, tokenizer: Any) -> Any:
    """An agent loop as verl makes it."""
    return kind(
        trainer_config=SimpleNamespace(config=config), server_manager=engine, tokenizer=tokenizer,
        data_config=SimpleNamespace(config=config.data), processor=None, tools=None,
    )  # fmt: skip
