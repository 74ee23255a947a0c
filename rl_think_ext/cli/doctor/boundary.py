"""Where the parts of a rollout meet, in ids, and whether they would meet there if they went through text (F31)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_think_ext.data.reader import Ids
from rl_think_ext.template import TagIds, find

if TYPE_CHECKING:
    from rl_think_ext.scoring.gain import Rollout


@dataclass(frozen=True)
class Part:
    """A span of ids with what it is; `text` holds one decoded string per id."""

    name: str
    ids: Ids
    text: tuple[str, ...]


@dataclass(frozen=True)
class Remark:
    """A sentence on a boundary, and whether it is one to worry about."""

    moves: bool
    text: str


def parts(coder: Any, tags: TagIds, rollout: Rollout, closed: bool, behind_target: Ids) -> tuple[Part, ...]:
    """The ids that the reasoned score reads, apart at every boundary, and the targets that it does not score.

    Args:
        coder: The tokenizer.
        closed: Whether the policy wrote the closing tag.
        behind_target: The target's ids behind those that one reward covers.
    """
    prompt, thought = rollout.prompt, rollout.thought
    bos = prompt[:1] if prompt[0] == coder.bos_token_id else ()
    body = rollout.context[len(bos) :] if rollout.context[:1] == bos else rollout.context
    at = find(prompt, body)
    if at < 0:
        around: list[tuple[str, Ids]] = [("prompt", prompt[len(bos) :])]
    else:
        behind = prompt[at + len(body) :]
        asked = "open tag" if behind == tags.open else "asked behind"
        around = [("asked before", prompt[len(bos) : at]), ("context", body), (asked, behind)]
    inner = thought.ids[: len(thought.ids) - len(tags.close)]
    spans = [
        ("BOS", bos),
        *around,
        ("thought", inner),
        ("close tag" if closed else "close added", tags.close),
        ("TARGET", rollout.target),
        ("not scored", behind_target),
    ]
    kept = [(name, ids) for name, ids in spans if ids or name in ("BOS", "thought", "TARGET")]
    return tuple(Part(name, ids, tuple(coder.decode([i]) for i in ids)) for name, ids in kept)


def remarks(coder: Any, rollout: Rollout, shown: Ids) -> Iterator[Remark]:
    """What decoding and encoding again would do to the context, to the boundary, and to the prompt that was shown.

    Args:
        coder: The tokenizer.
        shown: The ids that the policy read.
    """
    special = rollout.context[:1] == (coder.bos_token_id,)
    context = rollout.context[int(special) :]
    again = _through_text(coder, context)
    if again == context:
        yield Remark(False, f"decode → encode of the context gives the same {len(context)} ids.")
    else:
        yield Remark(True, f"decode → encode moves the context: {_difference(coder, context, again)}.")
    joined = context + rollout.target
    together = _through_text(coder, joined)
    if together == joined:
        yield Remark(False, "Encoded as one text, context and target meet at the same place.")
    else:
        yield Remark(True, f"Encoded as one text, context and target differ: {_difference(coder, joined, together)}.")
    if shown != rollout.prompt:
        where = _difference(coder, rollout.prompt, shown)
        yield Remark(True, f"`trl grpo` shows the prompt as text, the score reads ids: {where}. Use `rl-think train`.")
    if find(rollout.prompt, context) < 0:
        yield Remark(True, "The prompt, encoded as one text, does not hold the context's ids: a token spans both.")


def _through_text(coder: Any, ids: Ids) -> Ids:
    return tuple(coder(coder.decode(ids), add_special_tokens=False)["input_ids"])


def _difference(coder: Any, one: Ids, other: Ids) -> str:
    """The first place at which two lists of ids part, as tokens."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ours, theirs = ([visible(coder.decode([i])) for i in ids[at : at + 3]] for ids in (one, other))
    here, there = (" ".join(tokens) or "nothing" for tokens in (ours, theirs))
    return f"{len(one)} ids become {len(other)}, from {at} on {here} → {there}"


def visible(text: str) -> str:
    """A token with its white space and control characters to be seen.

    >>> visible(" a\\n")
    '␣a\\\\n'
    """
    return "".join("␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
