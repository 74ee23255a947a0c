"""A byte-level tokenizer for any text: `python -m rl_think_ext.tiny.text --out DIR`, and random models that read it.

It is for smoke tests on real text, where loading a real model would need a network. Its 4,096 entries are learned
from what is on every machine (docstrings of the standard library) and from made-up mathematical prose.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl_think_ext.tiny import TEXT_TOKENIZER
from rl_think_ext.tiny.prose import prose

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

ENTRIES = 4096
# GPT-2's pattern with single digits. Every character belongs to a branch, no repetition is nested, and none can give
# back more than one character: Qwen's `\s*[\r\n]+` is left out, since it can give back a whole run of spaces.
_PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PROSE_SEED, _PROSE_LENGTH = 0, 12_000


def docstrings(root: Path) -> Iterator[str]:
    """Every docstring in the modules and packages right under this folder; nothing is imported."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted([*root.glob("*.py"), *root.glob("[a-z]*/__init__.py")]):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                yield text


def train_tokenizer(texts: Sequence[str], entries: int = ENTRIES) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: decodes to the very text, adds no token of its own, pads on the left.

    All 256 bytes are entries, so there is no unknown token and no text that it cannot write.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pieces, as_bytes])
    bpe.decoder = decoders.ByteLevel()
    # As in Qwen3 the tags are no special tokens, so that skip_special_tokens leaves them in the text.
    tags = [AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")]
    trainer = trainers.BpeTrainer(
        vocab_size=entries - len(tags),
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens(tags)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def text_model(
    hidden: int = 64, layers: int = 2, *, heads: int = 4, positions: int = 4096, seed: int = 0
) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights for the shipped tokenizer: 0.4 M of them by default, the global seed left alone."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    tokenizer = _shipped()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=hidden // heads,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def save_text_model(path: str | os.PathLike[str], hidden: int = 64, layers: int = 2, *, seed: int = 0) -> Path:
    """Writes `text_model` and its tokenizer to a folder, as a base model for tests on real text."""
    out = Path(path)
    text_model(hidden, layers, seed=seed).save_pretrained(out)
    _shipped().save_pretrained(out)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer")
    out = parser.parse_args(argv).out
    import tokenizers

    texts = [*docstrings(Path(ast.__file__).parent), *prose(_PROSE_SEED, _PROSE_LENGTH)]
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(out)
    record = {
        "command": "python -m rl_think_ext.tiny.text --out DIR",
        "entries": len(tokenizer),
        "characters": sum(map(len, texts)),
        # The docstrings change with the version of Python, and the tokenizer with them.
        "versions": {"python": platform.python_version(), "tokenizers": tokenizers.__version__},
        "sha256": {"tokenizer.json": hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()},
    }
    (out / "built.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


def _shipped() -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(TEXT_TOKENIZER)


if __name__ == "__main__":
    main()
