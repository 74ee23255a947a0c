r"""The exact bytes of each token of a text: a token may hold half a character, which no decoding of it alone can show.

Byte-level vocabularies (GPT-2's, Qwen's, Llama 3's) spell every byte as a letter; SentencePiece-like ones (Llama 2's,
Gemma's) write a blank as ▁ and a byte that they have no piece for as <0xE2>. Of any other tokenizer the bytes are what
each token adds to the decoded text, and a token that changes what stands before it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal

from rl_think_ext.errors import UserError

Spelling = Literal["bytes", "pieces", "decoded"]
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "▁"
# Parts of a decoder that only join pieces, or take away a blank at the very beginning of a text.
_PLAIN = ("Fuse", "Strip", "ByteFallback", "Metaspace")


def token_bytes(tokenizer: Any, ids: Sequence[int]) -> list[bytes]:
    """The bytes of each id, so that joined they are the bytes of the text that the ids stand for in a longer one.

    Raises:
        UserError: an id that the tokenizer does not know, or a tokenizer whose tokens have no bytes of their own.
    """
    spelling = spelling_of(tokenizer)
    added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    for token in ids:
        if token < 0 or (token not in added and tokenizer.convert_ids_to_tokens(token) is None):
            raise UserError(f"token {token} is unknown to this tokenizer: the data were built with another one")
    if spelling == "decoded":
        return _added_by_decoding(tokenizer, ids)
    return [_bytes(tokenizer, i, added, spelling) for i in ids]


def spelling_of(tokenizer: Any) -> Spelling:
    """How a tokenizer's vocabulary spells bytes, read off its decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return "decoded"
    state = json.loads(backend.decoder.__getstate__())
    parts = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"]:
        return "bytes"
    blanks = {"pattern": {"String": _BLANK}, "content": " "}
    known = all(
        kind in _PLAIN or (kind == "Replace" and blanks.items() <= part.items())
        for kind, part in zip(kinds, parts, strict=True)
    )
    return "pieces" if known and ("Replace" in kinds or "Metaspace" in kinds) else "decoded"


def text_bytes(tokenizer: Any, text: str) -> list[bytes]:
    """The bytes of each token of a text that is encoded on its own, as a continuation without ids is.

    A blank that the tokenizer puts before every text is taken off the first token.

    Raises:
        UserError: the tokens' bytes are not those of the text.
    """
    pieces = token_bytes(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    wanted, found = text.encode("utf-8", "surrogatepass"), b"".join(pieces)
    if found == b" " + wanted:
        pieces = [piece for piece in (pieces[0][1:], *pieces[1:]) if piece]
    elif found != wanted:
        raise UserError(f"this tokenizer does not give {text[:40]!r} back: store its ids (rl-think data … --tokenizer)")
    return pieces


def _bytes(tokenizer: Any, token: int, added: dict[int, str], spelling: Spelling) -> bytes:
    if token in added:
        return added[token].encode()
    piece = tokenizer.convert_ids_to_tokens(token)
    if spelling == "bytes":
        letters = byte_letters()
        if not set(piece) <= letters.keys():
            raise UserError(f"token {token} ({piece!r}) is no byte-level token")
        return bytes(letters[letter] for letter in piece)
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_BLANK, " ").encode()


def _added_by_decoding(tokenizer: Any, ids: Sequence[int]) -> list[bytes]:
    """What each token adds to the decoded text of those before it."""
    texts = [b""]
    for num in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:num]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        texts.append(text.encode("utf-8", "surrogatepass"))
        if not texts[-1].startswith(texts[-2]) or "\ufffd" in text:
            raise UserError(f"token {ids[num - 1]} has no bytes of its own: this tokenizer cannot be used for RPT")
    return [text[len(before) :] for before, text in pairwise(texts)]


@cache
def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary: GPT-2's table, by its rule.

    >>> byte_letters()["Ġ"], byte_letters()["A"], len(byte_letters())
    (32, 65, 256)
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in shown}
    hidden = [byte for byte in range(256) if byte not in shown]
    return letters | {chr(256 + place): byte for place, byte in enumerate(hidden)}
