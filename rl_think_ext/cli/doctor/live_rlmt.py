"""One row of RLMT as a training step treats it: asked, sampled, taken apart, and what the reward model is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl_think_ext.cli.doctor.boundary import Part, Remark
from rl_think_ext.cli.doctor.case import Case
from rl_think_ext.cli.doctor.config import arguments, file, method
from rl_think_ext.cli.doctor.live import SAMPLING, generate, policy, row_of
from rl_think_ext.cli.doctor.model import stops, tokenizer
from rl_think_ext.cli.doctor.reward import loaded
from rl_think_ext.cli.doctor.rlmt import chat_of, policy_tokenizer, prompt_ids
from rl_think_ext.template import CLOSE_RESPONSE, CLOSE_TAG, OPEN_RESPONSE, OPEN_TAG

STAND_IN = "(the answer)"
# Characters of a thought whose words in an answer are no chance.
_TELLING = 16
_TAGS = (
    ("open tag", OPEN_TAG),
    ("close tag", CLOSE_TAG),
    ("open response", OPEN_RESPONSE),
    ("close response", CLOSE_RESPONSE),
)


@dataclass(frozen=True)
class Shown:
    """What the reward model reads: its text with every special token, how many ids and BOS, and what was cut off.

    `num_cut` counts the prompt's ids for which there is no room. With `stand_in` the output had no answer, and STAND_IN
    takes its place: such a chat is never scored.
    """

    model: str
    text: str
    num_tokens: int
    num_bos: int
    num_cut: int
    stand_in: bool = False


@dataclass(frozen=True)
class LiveRLMT:
    """What became of one row.

    `parts` are the ids at every boundary; `shown` is None where the reward model cannot be shown anything, and `score`
    None with `reason` where there is no number.
    """

    row: str
    source: str
    sampler: str
    parts: tuple[Part, ...]
    status: str
    num_sampled: int
    thought: str | None
    answer: str | None
    shown: Shown | None
    score: float | None
    reason: str | None
    remarks: tuple[Remark, ...]


def sample(case: Case, number: int) -> LiveRLMT:
    """Treat a row of the run's dataset as the first training step would; a reward model's server is asked once.

    Raises:
        UserError: no such row, or a row, model or server that cannot be used.
    """
    from rl_think_ext.methods.rlmt import reward_messages
    from rl_think_ext.scoring.outputs import reader
    from rl_think_ext.scoring.preference import PreferenceScorer

    it, args, config = file(case), arguments(case).args, method(case)[0]
    row, coder, ends = dict(row_of(case, number)), policy_tokenizer(case), stops(case)
    where = f"row {row.get('id') or number}"
    chat, prompt = chat_of(row, where), prompt_ids(case, row)
    ids = generated(case, prompt, ends, args.seed + number, config.stop)
    output = reader(coder, ends, args.max_completion_length)(ids)
    prefilled = not config.stop and coder.decode(prompt).rstrip().endswith(OPEN_TAG)
    model = loaded(case)
    found = PreferenceScorer(config, model)([chat], [output], prefilled=prefilled)
    parts, score = found.parts[0], found.scores[0]
    said = parts if parts.answer is not None else replace(parts, answer=STAND_IN)
    text = STAND_IN if parts.answer is None else output.text.strip()
    shown = _shown(model, reward_messages(chat, said, score=config.score, text=text), config, parts.answer is None)
    return LiveRLMT(
        row=where,
        source=f"{arguments(case).script.dataset_name}, under {it.command}",
        sampler=sampler_of(args, ends) + (f" and {config.stop}" if config.stop else ""),
        parts=tuple(parts_of(coder, prompt, ids, ends, _TAGS)),
        status=parts.status,
        num_sampled=len(ids),
        thought=parts.thought,
        answer=parts.answer,
        shown=shown,
        score=score.value,
        reason=score.reason,
        remarks=tuple(_remarks(config, parts, shown)),
    )


def sampler_of(args: Any, ends: Sequence[int]) -> str:
    """How an output is sampled, in words."""
    return f"temperature {args.temperature}, at most {args.max_completion_length} tokens, ends at {list(ends)}"


def generated(case: Case, prompt: Sequence[int], ends: Sequence[int], seed: int, stop: str | None = None) -> list[int]:
    """The ids of one output; vLLM's stop string is transformers' own here."""
    from rl_think_ext.scoring.outputs import cut_behind

    args, coder = arguments(case).args, tokenizer(case)
    sampler = {name: getattr(args, name) for name in SAMPLING} | {"do_sample": True, "eos_token_id": list(ends)}
    sampler |= {"max_new_tokens": args.max_completion_length, "pad_token_id": coder.pad_token_id}
    sampler |= {"bos_token_id": coder.bos_token_id}
    sampler |= {} if args.use_vllm else args.generation_kwargs or {}
    if stop:
        sampler |= {"stop_strings": [stop], "tokenizer": coder}
    ids = generate(policy(case), prompt, sampler, seed)
    return cut_behind(ids, stop, coder) if stop else ids


def parts_of(
    coder: Any, prompt: Sequence[int], ids: Sequence[int], ends: Sequence[int], tags: Sequence[tuple[str, str]]
) -> Iterator[Part]:
    """The prompt, and the output apart at every tag; a token that spans two parts stands with the first of them.

    Args:
        tags: Their names, and the tags.
    """
    yield _part(coder, "prompt", prompt)
    end = ids[-1:] if ids and ids[-1] in ends else []
    body = ids[: len(ids) - len(end)]
    text, places = coder.decode(body), []
    for name, tag in tags:
        at = text.find(tag)
        if at >= 0:
            places.append((_tokens_to(coder, body, at), _tokens_to(coder, body, at + len(tag)), name))
    before = 0
    for start, stop, name in sorted(places):
        if start > before:
            yield _part(coder, "sampled", body[before:start])
        yield _part(coder, name, body[max(before, start) : stop])
        before = max(before, stop)
    if before < len(body):
        yield _part(coder, "sampled", body[before:])
    yield _part(coder, "end", end)


def _tokens_to(coder: Any, ids: Sequence[int], num_chars: int) -> int:
    """How many ids it takes for so many characters."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(coder.decode(ids[:middle])) >= num_chars:
            high = middle
        else:
            low = middle + 1
    return low


def _part(coder: Any, name: str, ids: Sequence[int]) -> Part:
    return Part(name, tuple(ids), tuple(coder.decode([i]) for i in ids))


def _shown(model: Any, conversation: Sequence[Any], config: Any, stand_in: bool) -> Shown | None:
    """What is left of a conversation when the reward model reads it; None where it cannot be written."""
    given = model.encode(conversation)
    ids = getattr(given, "ids", None)
    if ids is None:
        return None
    bos = model.template.tokenizer.bos_token_id
    num_bos = 0 if bos is None else list(ids).count(bos)
    place = f"{config.reward_model} on its server" if config.server else config.reward_model
    return Shown(place, model.template.decode(given), len(ids), num_bos, given.num_cut, stand_in)


def _remarks(config: Any, parts: Any, shown: Shown | None) -> Iterator[Remark]:
    """Sentences on what the reward model sees and what not; each is looked up in the text, not supposed."""
    if shown is None:
        yield Remark(True, "The reward model cannot be shown this chat.")
        return
    if shown.stand_in:
        yield Remark(True, f"This output has no answer. One would stand in place of {STAND_IN}, without its thought.")
        return
    thought = (parts.thought or "").strip()
    if config.score == "full":
        yield Remark(True, "`score: full`: the reward model is shown the thought, too. The paper's is `answer`.")
    elif not thought:
        yield Remark(False, "There is no thought: the reward model is shown the chat and the answer.")
    elif (len(thought) >= _TELLING and thought in shown.text) or CLOSE_TAG in (parts.answer or ""):
        yield Remark(True, "The words of the thought stand in what the reward model is shown: read the answer.")
    else:
        yield Remark(False, "The thought is not in there: the reward model is shown the chat and the answer alone.")
    if shown.num_bos > 1:
        yield Remark(True, f"It begins with {shown.num_bos} BOS tokens; one is right.")
    if shown.num_cut:
        yield Remark(
            True, f"{shown.num_cut} tokens of the prompt were cut on the left: the model has no room for them."
        )
