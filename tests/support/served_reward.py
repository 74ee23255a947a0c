"""verl's own reward model service without an engine: its replica names a server that a test has started."""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.replica import RolloutReplica


class ServedReward(RolloutReplica):
    """Stands for vLLM's replica of a reward model; `engine_kwargs.vllm.address` says where it is."""

    async def init_colocated(self, resource_pool: Any) -> None:
        await self.launch_servers()

    async def init_standalone(self) -> None:
        await self.launch_servers()

    async def launch_servers(self) -> None:
        self._server_address = str(self.config.engine_kwargs["vllm"]["address"])
