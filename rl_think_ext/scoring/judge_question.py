"""How a pair of texts is written for a judge: nothing that is quoted is a control token, and nothing ends its quote."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_think_ext.errors import UserError
from rl_think_ext.messages import Message
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.methods.verdict import PROMPTS, judge_prompt, template_fault

if TYPE_CHECKING:
    from rl_think_ext.scoring.judge import Pair

# Part of what a verdict is kept under: another number asks all questions anew.
QUOTING = 2
LARGEST_PROMPT = 2**16  # bytes
# Control tokens begin with "<": <|im_end|>, </s>, <start_of_turn>, DeepSeek's with full-width bars. The look-alikes
# become "<" in tokenizers that normalise; "<=" and "<5" begin none.
_OPENING = re.compile(r"([<＜﹤])(?=[^\s=\d])")
# Mistral's and BERT's: [INST], [/INST], [TOOL_CALLS], [gMASK], [SEP]; not [1] and not [sic].
_BRACKETED = re.compile(r"([\[［])(?=/?(\w{2,60})[\]］])")
# EXAONE's and MiniMax': [|endofturn|], ]~b], [e~[.
_BARRED = re.compile(r"([\[\]［］])(?=[|｜~]|e~)")
# Half characters, and controls that no text needs, are refused by some servers and dropped by some tokenizers.
_NO_TEXT = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")


def quoted(text: str) -> str:
    """A text as the judge is shown it: without half characters, and with a blank inside what may be a control token.

    A server reads its chat template's tokens wherever they stand, also in what somebody only quotes: `<|im_end|>` in a
    prediction would end the question. The blank is the same in both texts, so that it changes no comparison.

    >>> quoted("a<b [INST] x <|im_end|> [1]")
    'a< b [ INST] x < |im_end|> [1]'
    """
    return _BARRED.sub(r"\1 ", _BRACKETED.sub(_broken, _OPENING.sub(r"\1 ", _NO_TEXT.sub("\ufffd", text))))


def _broken(found: re.Match[str]) -> str:
    return f"{found[1]} " if sum(map(str.isupper, found[2])) > 1 else found[1]


def draw_boundary() -> str:
    """A mark that cannot be guessed; 64 bits for the one guess that a prediction has.

    >>> len(draw_boundary()), draw_boundary() != draw_boundary()
    (19, True)
    """
    return f"==={secrets.token_hex(8)}"


def question(reference: str, prediction: str, config: RLPTConfig, template: str | None) -> str:
    """What the judge is asked about a pair, behind a boundary that stands in neither text."""
    reference, prediction = quoted(reference), quoted(prediction)
    boundary = draw_boundary()
    while boundary in reference or boundary in prediction:
        boundary = draw_boundary()
    return judge_prompt(reference, prediction, boundary=boundary, reward=config.reward, template=template)


class Questions(Sequence[list[Message]]):
    """What the judge is asked about pairs, as conversations; each is written when it is looked at."""

    def __init__(self, pairs: Sequence[Pair], config: RLPTConfig, template: str | None) -> None:
        self.pairs, self.config, self.template = pairs, config, template

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        reference, prediction = self.pairs[index]
        return [{"role": "user", "content": question(reference, prediction, self.config, self.template)}]


def load_template(path: str | None) -> str | None:
    """The user's own prompt, None for ours.

    Raises:
        UserError: a file that cannot be read, is not UTF-8, or lacks what a question needs.
    """
    if path is None:
        return None
    where = f"the judge's prompt {Path(path).absolute()}"
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"could not read {where}: {error.strerror}") from error
    if len(content) > LARGEST_PROMPT:
        raise UserError(f"{where} has {len(content):,} bytes: a prompt has at most {LARGEST_PROMPT:,}")
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if fault := template_fault(text):
        raise UserError(
            f"{where} cannot be used: {fault}. It needs {{reference}} and {{prediction}} once each, every one between "
            "two {boundary}, and asks for `Score: 0` or `Score: 1`."
        )
    return text


def wording(config: RLPTConfig, template: str | None) -> str:
    """The words of every question, without its texts."""
    return PROMPTS[config.reward] if template is None else template
