"""The agent loop `rl_think_chat`: a chat in the policy's own form, one output, nothing kept behind its stop.

The prompt is the whole chat in the policy's template, or the frame of a raw base model. One that is too long ends the
run: cut, the reward model would judge an answer to more than the policy was asked.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.utils.profiler import simple_timer

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.chat_prompt import prompt_ids
from rl_think_ext.scoring.outputs import cut_behind
from rl_think_ext.verl import resolved
from rl_think_ext.verl.rlmt_sample import FORM
from rl_think_ext.verl.sample_info import SampleForm, chat_of, place_of
from rl_think_ext.verl.stops import stop_at


class ScoredLoop(AgentLoopBase):
    """One turn, whose output a reward worker scores; a subclass says what the policy reads, and where it stops.

    verl makes one for every sample. Its own builder of prompts is left out: it goes by families of models, and here the
    template alone says what a prompt is.
    """

    form: ClassVar[SampleForm]
    stop: str | None = None

    def __init__(self, trainer_config: Any, server_manager: Any, tokenizer: Any, data_config: Any, **_: Any) -> None:
        self.config, self.data_config = trainer_config.config, data_config.config
        self.rollout_config = self.config.actor_rollout_ref.rollout
        self.server_manager, self.tokenizer = server_manager, tokenizer
        self.options: dict[str, Any] = dict(self.data_config.get("apply_chat_template_kwargs") or {})

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Ask for one output; what is wrong with the row travels to the trainer, where it ends the run."""
        try:
            prompt = self._prompt(row)
            params = stop_at(sampling_params, self.rollout_config.name, text=self.stop)
        except UserError as error:
            return self._refused(error, row, bool(sampling_params.get("logprobs")))
        timing: dict[str, float] = {}
        priority = int(row.get("priority", 0))
        with simple_timer("generate_sequences", timing):
            said = await self.server_manager.generate(
                request_id=f"det-{priority}" if self.rollout_config.get("full_determinism") else uuid4().hex,
                prompt_ids=prompt,
                sampling_params=params,
                priority=priority,
            )
        ids = self._kept(said.token_ids)
        logprobs = list(said.log_probs[: len(ids)]) if said.log_probs else None
        # verl cannot hold a response without an id; the mask says that none was sampled.
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=ids or [int(self.tokenizer.eos_token_id)],
            response_mask=[1] * len(ids) or [0],
            response_logprobs=logprobs or ([0.0] if sampling_params.get("logprobs") else None),
            num_turns=2,
            metrics=AgentLoopMetrics(num_preempted=-1 if said.num_preempted is None else said.num_preempted, **timing),
            extra_fields=dict(said.extra_fields),
        )

    @abstractmethod
    def ids(self, row: Mapping[str, Any], where: str) -> list[int]:
        """The ids of a row's prompt.

        Raises:
            UserError: a row that cannot be asked; `where` names it.
        """

    def _prompt(self, row: Mapping[str, Any]) -> list[int]:
        where = place_of(row)
        ids = self.ids(row, where)
        if len(ids) > self.rollout_config.prompt_length:
            raise UserError(
                f"{where}: its prompt has {len(ids)} tokens, and actor_rollout_ref.rollout.prompt_length is "
                f"{self.rollout_config.prompt_length}: raise it (data.max_prompt_length), or leave the row out"
            )
        return ids

    def _kept(self, ids: list[int]) -> list[int]:
        """An output up to its stop: an engine that samples on behind it would be trained for nothing it is paid for."""
        ids = list(ids)[: self.rollout_config.response_length]
        return ids if self.stop is None else cut_behind(ids, self.stop, self.tokenizer)

    def _refused(self, error: UserError, row: Mapping[str, Any], with_logprobs: bool) -> AgentLoopOutput:
        """A sample that says why there is none: an exception here would only cost the group."""
        step, end = row.get("global_steps"), int(self.tokenizer.eos_token_id)
        said = {"reward_extra_info": self.form.fatal(error), "min_global_steps": step, "max_global_steps": step}
        return AgentLoopOutput(
            prompt_ids=[end],
            response_ids=[end],
            response_mask=[0],
            response_logprobs=[0.0] if with_logprobs else None,
            reward_score=float("nan"),
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields=said,
        )


class ChatLoop(ScoredLoop):
    """A chat of RLMT, in the policy's template or in the frame of a raw base model."""

    form = FORM

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings: RLMTConfig = resolved.settings_of(self.config, "rlmt")
        self.prefills: bool = resolved.door_of(self.config).prefill_think
        self.stop = self.settings.stop

    def ids(self, row: Mapping[str, Any], where: str) -> list[int]:
        """The whole chat as the policy reads it."""
        return prompt_ids(chat_of(row), self.settings, self.tokenizer, where, self.options, prefill=self.prefills)
