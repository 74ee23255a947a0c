"""The word-level tokenizers of the chat task: a Qwen-like one for the policy, a Llama-like one for the reward model.

They share no ids, no roles and no template, as in real life: what passes from one to the other is text. The reward
model's adds `<|begin_of_text|>` to every text, and its template writes one, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl_think_ext.tiny.chat_examples import CHAT
from rl_think_ext.tiny.chats import LETTERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# Words that can begin a line stand without a space, too; so a text is its words, and decodes to itself.
WORDS = (
    *"letters keep list count hmm".split(),
    *(f" {letter}" for letter in LETTERS),
    *(f" {digit}" for digit in range(10)),
    *(f" {word}" for word in "keep sort list count , no vowels none after before sorted backwards first".split()),
    *(f" {word}" for word in CHAT),
    *"\n \n\n user assistant system < </ think response >".split(" "),
)
_PATTERN = r"</?|>|\n+| ?[^\s<>]+"

POLICY_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REWARD_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """The policy's: `<think>` and `</think>` are one token each and, as in Qwen3, not special; pads on the left."""
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>"]
    words = _words([*special, *WORDS], "<|unk|>")
    words.add_special_tokens(special)
    words.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        chat_template=POLICY_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def reward_tokenizer() -> PreTrainedTokenizerFast:
    """The reward model's: begins every text with `<|begin_of_text|>`, pads on the right, knows no thinking tags."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    begin = "<|begin_of_text|>"
    special = [begin, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>", "<|unk|>"]
    words = _words([*special, *sorted(WORDS, reverse=True)], "<|unk|>")
    words.add_special_tokens(special)
    words.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=begin,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|eot_id|>",
        additional_special_tokens=["<|start_header_id|>", "<|end_header_id|>"],
        padding_side="right",
        chat_template=REWARD_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _words(vocabulary: Sequence[str], unknown: str) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    words.decoder = decoders.Fuse()
    return words
