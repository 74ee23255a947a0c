"""Imported by every Ray process of a test's run (VERL_USE_EXTERNAL_MODULES=support.verl_cpu)."""

from __future__ import annotations

import itertools
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

from support import platform as platform  # registers itself
from support.after_import import after_import


def gloo_once(module: Any) -> None:
    """verl asks for "cpu:gloo,<device>:<backend>", which names the CPU twice here."""
    module.initialize_global_process_group_ray = partial(module.initialize_global_process_group_ray, backend="gloo")


def nothing_pinned(module: Any) -> None:
    """Pinned memory needs an accelerator; verl asks for it in every engine that runs forward only."""
    policy = module.CPUOffloadPolicy
    module.CPUOffloadPolicy = lambda pin_memory=True: policy(pin_memory=False)


def value_head_by_sdpa(module: Any) -> None:
    """verl loads a critic with flash attention and no way to ask for another."""

    def load_valuehead_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(
            local_path, dtype=torch_dtype, config=model_config, attn_implementation="sdpa"
        )

    module.load_valuehead_model = load_valuehead_model


def number_rollouts(module: Any) -> None:
    run = module.AgentLoopWorker._run_agent_loop

    async def run_numbered(self: Any, sampling_params: Any, trajectory: Any, **kwargs: Any) -> Any:
        from support.rollout_number import ROLLOUT  # imported here: Ray pickles this function, a ContextVar it cannot

        ROLLOUT.set(kwargs.get("session_id", 0))  # each rollout is an asyncio task with a context of its own
        return await run(self, sampling_params, trajectory, **kwargs)

    module.AgentLoopWorker._run_agent_loop = run_numbered


def send_rollout_number(module: Any) -> None:
    generate = module.LLMServerClient.generate

    async def generate_numbered(self: Any, request_id: str, *, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        from support.rollout_number import ROLLOUT

        numbered = {**sampling_params, "rollout": ROLLOUT.get()}
        return await generate(self, request_id, sampling_params=numbered, **kwargs)

    module.LLMServerClient.generate = generate_numbered


def count_prompts(module: Any) -> None:
    """A prompt's name is random in verl; counted names have an order, which `in_order` needs."""
    numbers = itertools.count()
    module.uuid = SimpleNamespace(uuid4=lambda: f"{next(numbers):08d}")


def in_order(module: Any) -> None:
    """A batch in the order of its prompts and rollouts, not of their arrival, so that its sums are equal each time."""
    make = module.ReplayBuffer._materialize_batch

    def make_in_order(self: Any, partition_id: str, uids: list[str], tags: dict[str, Any]) -> Any:
        def place(key: str) -> tuple[str, int, int]:
            uid, session, output = key.rsplit("_", 2) if key.count("_") > 1 else (key, -1, -1)
            return uid, int(session), int(output)

        return make(self, partition_id, uids, {key: tags[key] for key in sorted(tags, key=place)})

    def wait_less(self: Any, partition_id: str, last_debug_time: float) -> float:
        time.sleep(0.1)  # 2 s in verl, each step
        return last_debug_time

    module.ReplayBuffer._materialize_batch = make_in_order
    module.ReplayBuffer._wait_for_next_poll = wait_less


def register_replica(module: Any) -> None:
    def load() -> type:
        from support.rollout import HFReplica

        return HFReplica

    def load_reward() -> type:
        from support.served_reward import ServedReward

        return ServedReward

    module.RolloutReplicaRegistry.register("hfcpu", load)
    module.RolloutReplicaRegistry.register("vllm", load_reward)  # of a reward model: nobody samples with it here


def register_adapter(module: Any) -> None:
    module._ROLLOUT_REGISTRY["hfcpu", "async"] = "support.rollout.HFAdapter"  # verl has no public way


def register_stops(module: Any) -> None:
    module.register_engine("hfcpu", like="vllm")


after_import("rl_think_ext.verl.stops", register_stops)
after_import("verl.utils.distributed", gloo_once)
after_import("verl.utils.fsdp_utils", nothing_pinned)
after_import("verl.utils.model", value_head_by_sdpa)
after_import("verl.experimental.agent_loop.agent_loop", number_rollouts)
after_import("verl.workers.rollout.llm_server", send_rollout_number)
after_import("verl.trainer.ppo.v1.trainer_base", count_prompts)
after_import("verl.trainer.ppo.v1.replay_buffer", in_order)
after_import("verl.workers.rollout.replica", register_replica)
after_import("verl.workers.rollout.base", register_adapter)
