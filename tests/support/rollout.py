"""The rollout `hfcpu`: transformers' model in one Ray actor a replica, token ids in and out, as verl's vLLM server.

What it samples depends on the seed, the step, the prompt, the number of the rollout and how often that rollout asked
for this prompt, on nothing else: two runs, and a run that was resumed, can be compared number by number.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from support.sampling import Sampling, sample


class HFServer:
    """One replica. Requests are answered one by one: the sums of a batch would depend on who else is in it."""

    def __init__(self, path: str, response_length: int, seed: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.response_length = response_length
        self.seed = seed
        self.step = 0
        self.asked: Counter[tuple[int, ...]] = Counter()

    async def load(self, weights: dict[str, torch.Tensor], step: int | None) -> None:
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:  # a tied head is not sent
            raise ValueError(f"weights of another model: missing {missing}, unexpected {unexpected}")
        self.step = self.step if step is None else step
        self.asked.clear()

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        """As vLLM behind verl: the stop token or the tokens of the stop text stay in, log-probs as sampled from."""
        params = dict(sampling_params)
        rollout = params.pop("rollout", 0)
        num_prompt_logprobs = params.pop("prompt_logprobs", None)
        prompt = [int(token) for token in prompt_ids]
        key = (rollout, *prompt)
        draws = (self.seed, self.step, self.asked[key], key)
        self.asked[key] += 1
        extra: dict[str, Any] = {"global_steps": self.step}
        if num_prompt_logprobs is not None:
            extra |= self.prompt_logprobs(prompt, num_prompt_logprobs)
        sampling = Sampling.of(params, self.response_length, self.model.generation_config.eos_token_id)
        tokens, logprobs = sample(self.model, self.tokenizer, prompt, sampling, draws)
        return TokenOutput(
            token_ids=tokens,
            log_probs=logprobs if sampling.logprobs else None,
            stop_reason="completed",
            num_preempted=0,
            extra_fields=extra,
        )

    @torch.no_grad()
    def prompt_logprobs(self, prompt: list[int], num: int) -> dict[str, Any]:
        """Each prompt token's log-prob but the first's (num = 0), or the `num` best in its place; a 0 closes both."""
        logprobs = self.model(torch.tensor([prompt])).logits[0, :-1].float().log_softmax(-1)
        if num == 0:
            ids = torch.tensor(prompt[1:], dtype=torch.int64)[:, None]
            values = logprobs.gather(-1, ids)
        else:
            values, ids = logprobs.topk(num)
        width = max(num, 1)
        return {
            "prompt_logprobs": [*values.tolist(), [0.0] * width],
            "prompt_ids": [*ids.tolist(), [0] * width],
        }

    async def ready(self) -> None: ...

    async def wake_up(self, **_: Any) -> None: ...

    async def sleep(self, **_: Any) -> None: ...

    async def abort_all_requests(self, **_: Any) -> None: ...

    async def resume_generation(self) -> None: ...

    async def clear_kv_cache(self) -> None: ...

    async def release_kv_cache(self) -> None: ...

    async def resume_kv_cache(self) -> None: ...

    async def start_profile(self, **_: Any) -> None: ...

    async def stop_profile(self) -> None: ...


class HFReplica(RolloutReplica):
    async def launch_servers(self) -> None:
        options = {"name": server_name(self.replica_rank), "num_cpus": 0, "max_concurrency": self.max_concurrency}
        server = ray.remote(HFServer).options(**options)
        path, length, seed = self.model_config.path, self.config.response_length, self.config.seed
        handle = server.remote(path, length, seed)
        await handle.ready.remote()
        self.servers = [handle]
        self._server_handle = handle
        self._server_address = server_name(self.replica_rank)


class HFAdapter(BaseRollout):
    """The trainer worker's side: it pushes the actor's weights to its replica."""

    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(
        self,
        weights: Iterator[tuple[str, torch.Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        **_: Any,
    ) -> None:
        """Every rank drains the generator, whose full tensors are collectives; the first of a replica sends."""
        gathered = {name: tensor.detach().float().cpu().clone() for name, tensor in weights}
        ranks = self.config.tensor_model_parallel_size * self.config.data_parallel_size
        replica, position = divmod(int(os.environ["RANK"]), ranks)
        if position == 0:
            await ray.get_actor(server_name(replica)).load.remote(gathered, global_steps)


def server_name(replica: int) -> str:
    return f"hfcpu_{replica}"
