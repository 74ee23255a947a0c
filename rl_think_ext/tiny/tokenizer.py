"""The word-level tokenizer of the miniature task: 80 entries, so that one step of a worked thought is three tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from rl_think_ext.tiny.programs import CHAT, NAMES, OPERATIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# <unk> is not <pad>: whoever scores a text can tell a foreign word from padding.
SPECIAL = ("<pad>", "<eos>", "<think>", "</think>", "<unk>")
VOCABULARY = (
    *SPECIAL,
    *(f"={digit}" for digit in range(10)),
    "a",
    *(f" {name}={last}" for last, name in pairwise(NAMES)),
    *OPERATIONS,
    *(f" {name}?" for name in NAMES[1:]),
    " :",
    *(f" {word}" for word in CHAT),
)
# No two branches can begin at the same character with the same two characters, and no repetition is nested.
_PATTERN = r"=\d|a(?==\d)| [b-j]=[a-i]|[-+*]\d| [b-j]\?| :| [a-z]+"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: adds no token of its own, decodes to the very text, pads on the left."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    words.decoder = decoders.Fuse()
    # As in Qwen3 the tags are no special tokens, so that skip_special_tokens leaves them in the text.
    words.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
