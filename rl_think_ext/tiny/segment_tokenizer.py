"""The word-level tokenizer of RLPT's miniature task: the paper's whole prompts are in its vocabulary."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rl_think_ext.methods.rlpt import render_asr, render_msr
from rl_think_ext.template import CLOSE_PREDICTION, OPEN_PREDICTION
from rl_think_ext.tiny.programs import CHAT, NAMES
from rl_think_ext.tiny.tokenizer import SPECIAL as PROGRAM_SPECIAL
from rl_think_ext.tiny.tokenizer import VOCABULARY as PROGRAMS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TAGS = (OPEN_PREDICTION, CLOSE_PREDICTION, "<MASK>")
SPECIAL = ("<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A step of a program is three tokens (` b=a`, `+4`, `=9`), everything else its words and signs.
_PATTERN = r" \\boxed\{\d\}|=\d|a(?==\d)| [b-j]=[a-i]|[-+*]\d| ?[A-Za-z]+| \d|\n+| ?#+|[^\w\s]| "


def vocabulary() -> list[str]:
    """Every word of the task, each once, in an order that does not change."""
    frame = re.sub(r"<[^>]*>", "\0", render_asr("") + "\0" + render_msr("", ""))
    asked = [word for text in frame.split("\0") for word in re.findall(_PATTERN, text)]
    told = "user assistant system hmm Take So What \n \n\n : ."
    return list(
        dict.fromkeys(
            (
                *SPECIAL,
                *(word for word in PROGRAMS if word not in PROGRAM_SPECIAL),
                *(f" {name}" for name in NAMES),
                *(f" {digit}" for digit in range(10)),
                *(f" \\boxed{{{digit}}}" for digit in range(10)),
                *told.split(" "),
                *(" So", " so", " is", " Take", " What", " ", ",", "?"),
                *(f" {word}" for word in CHAT),
                *asked,
            )
        )
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: the tags and `<MASK>` are one token each and not special, so that decoding keeps them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token="<|unk|>"))
    found.pre_tokenizer = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    found.decoder = decoders.Fuse()
    found.add_special_tokens(list(SPECIAL))
    found.add_tokens(list(TAGS))
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
