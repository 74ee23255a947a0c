"""The agent loop `rl_think_thought`: a thought behind the ids of a row's prompt, up to its closing tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.utils.profiler import simple_timer

from rl_think_ext.template import CLOSE_TAG, TagIds, find
from rl_think_ext.verl.stops import stop_at


class ThoughtLoop(AgentLoopBase):
    """Samples one thought. Nothing is encoded on the way: the prompt's ids are the dataset's (F31).

    The reward is left open: it needs the actor's weights, and the trainer has them.
    """

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """verl's way of asking for one sample.

        Args:
            sampling_params: As verl makes them.
            **row: The dataset's fields; `think_row` holds what RLP needs.
        """
        tags, priority = TagIds.of(self.tokenizer), int(row.get("priority", 0))
        stop: dict[str, Any] = {"token": tags.close[0]} if len(tags.close) == 1 else {"text": CLOSE_TAG}
        prompt = [int(i) for i in _of(row, "think_row")["prompt_ids"]]
        timing: dict[str, float] = {}
        with simple_timer("generate_sequences", timing):
            output = await self.server_manager.generate(
                request_id=f"det-{priority}" if self.rollout_config.get("full_determinism", False) else uuid4().hex,
                prompt_ids=prompt,
                sampling_params=stop_at(sampling_params, self.rollout_config.name, **stop),
                priority=priority,
            )
        kept = min(end_of_thought(output.token_ids, tags, self.tokenizer), self.rollout_config.response_length)
        ids, logprobs = list(output.token_ids[:kept]), list(output.log_probs[:kept]) if output.log_probs else None
        # verl cannot hold a response without an id; the mask says that none was sampled.
        mask = [1] * len(ids) or [0]
        timing["num_preempted"] = -1 if output.num_preempted is None else output.num_preempted
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=ids or [self.tokenizer.eos_token_id],
            response_mask=mask,
            response_logprobs=logprobs or ([0.0] if logprobs is not None or sampling_params.get("logprobs") else None),
            num_turns=2,
            metrics=AgentLoopMetrics(**timing),
            # As verl's own loops: the same names whatever was sampled.
            extra_fields={**output.extra_fields, "turn_scores": [], "tool_rewards": []},
        )


def end_of_thought(ids: Sequence[int], tags: TagIds, tokenizer: Any) -> int:
    """How many of the sampled ids belong to a thought: up to and with the id that completes its closing tag.

    A tag of several tokens may be written in other pieces; then the text decides.
    """
    at = find(ids, tags.close)
    if at >= 0:
        return at + len(tags.close)
    if len(tags.close) == 1 or CLOSE_TAG not in tokenizer.decode(ids, skip_special_tokens=False):
        return len(ids)
    few, many = 0, len(ids)  # the first `many` ids hold the tag, the first `few` do not
    while many - few > 1:
        middle = (few + many) // 2
        if CLOSE_TAG in tokenizer.decode(ids[:middle], skip_special_tokens=False):
            many = middle
        else:
            few = middle
    return many


def _of(row: Mapping[str, Any], name: str) -> Any:
    value = row[name]
    return value.data if hasattr(value, "data") and not isinstance(value, Mapping) else value
