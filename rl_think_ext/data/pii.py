"""Masks what names or reaches a person (e-mail, IP, phone, card, IBAN, secret key) by fixed words such as <EMAIL>.

A fixed word is something that a policy could learn to predict, so a segment that holds one (`has_mask`) belongs into a
context, never into a target. What is found and what is not is a table in docs/text-filters.md, and a test.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

MASKS = {
    "key": "<KEY>",
    "email": "<EMAIL>",
    "iban": "<IBAN>",
    "card": "<CARD>",
    "phone": "<PHONE>",
    "ip": "<IP>",
}
_MASK = re.compile("|".join(MASKS.values()))

# All patterns are linear: every repetition is bounded, or can begin only once in a run of its own characters. Where one
# begins with a character and then looks at the one before it, `re` skips to the character; the other way it crawls.
_KEY_HINTS = (
    "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "npm_", "hf_", "AKIA", "ASIA", "AIza",
    "xox", "k_live_", "k_test_", "eyJ", "-----BEGIN ",
)  # fmt: skip
_KEY = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:
      sk-(?=[A-Za-z0-9_-]*[0-9])(?=[a-z0-9_-]*[A-Z])[A-Za-z0-9_-]{20,}
    | gh[pousr]_[A-Za-z0-9]{36,} | github_pat_\w{22,} | glpat-[\w-]{20,} | npm_[A-Za-z0-9]{36,}
    | hf_[A-Za-z0-9]{20,} | (?:AKIA|ASIA)[A-Z0-9]{16}(?!\w) | AIza[\w-]{35} | xox[abeprs]-[\w-]{10,}
    | [rs]k_(?:live|test)_[A-Za-z0-9]{20,}
    | eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}
    | -----BEGIN[ ][A-Z ]{0,30}PRIVATE[ ]KEY-----[A-Za-z0-9+/=\s]{0,20000}-----END[ ][A-Z ]{0,30}PRIVATE[ ]KEY-----
    )""",
    re.VERBOSE | re.ASCII,
)
# What can be an address is handed to datatrove's pattern, which alone takes the square of a long text's length.
_LETTERS = "\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff"
_EMAIL = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.{_LETTERS}-]{{1,64}}@[A-Za-z0-9.{_LETTERS}-]{{1,255}}")
_LETTER = re.compile(f"[{_LETTERS}]")
_IBAN = re.compile(r"[A-Z](?<!\w.)[A-Z][0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
# Cards, accounts and phone numbers have seven digits close together; most texts have none.
_NUMBER = re.compile(r"[0-9](?:[ ./()-]{0,2}[0-9]){6}")
_CARD = re.compile(
    r"[0-9](?<![\w.,+-].)"
    r"(?:[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}|[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5}|[0-9]{12,18})"
    r"(?!\w|[.,-][0-9])"
)
_ISSUER = re.compile(
    r"4(?:.{12}|.{15}|.{18})|(?:5[1-5]|2[2-7]|6[05]).{14}|3[47].{13}|3[068].{12}|35.{14}|(?:50|5[6-8]|6).{10,17}"
)
_PLUS = re.compile(r"\+(?<![\w+)\]}$.-].)[1-9](?:[ ./()-]{0,2}[0-9]){6,14}(?![0-9])")
_US = re.compile(
    r"(?<![\w.+-])(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ -]?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[.-][0-9]{4}(?![\w-]|\.[0-9])"
)
_CUED = re.compile(
    r"(?i:(?<!\w)(?:tel|phone|telephone|fax|mobile|whatsapp|telefon|téléphone|tél|teléfono|handy)(?!\w)\.?"
    r"(?:[ ](?:number|no|nr|is|us|me|at)(?!\w)\.?){0,3}[ :]{0,3})([+(]?[0-9](?:[ ./()-]{0,2}[0-9]){6,14})(?![0-9])"
)
_IPV4 = re.compile(r"[0-9](?<![\w.].)(?<![A-Za-z]-.)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\w|\.\w|-[A-Za-z])")
# What every IPv4 address holds, and hardly a text; it begins with a letter of its own, which is quickly found.
_POINTS = re.compile(r"\.[0-9]{1,3}\.[0-9]")
# Public addresses are all in 2000::/3 so far; `a::b` is code.
_IPV6 = re.compile(r"[23](?<![\w:.].)[0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])")
# Numbers with three points that are no address.
_VERSION = re.compile(
    r"(?:(?i:version|release|build|firmware|driver|section|chapter|clause|ver|rev|sec|theorem|lemma|corollary"
    r"|proposition|definition|remark|example|exercise|problem|equation|eq|table|figure|fig|appendix)\.?|§)[ :=~]{0,3}\Z"
)
# What a sum goes on from: a sign, a number, a bracket, a variable; "t", "f", "m" and "p" stand before phone numbers.
_SUM = re.compile(r"(?:[=<>0-9)}\]^*/&]|(?<!\w)[a-eg-ln-oq-su-z])\s*\Z")

Replace = Callable[["re.Match[str]"], str]


def has_mask(text: str) -> bool:
    """Whether a text holds a word that stands for something masked, so that it should be no target.

    >>> has_mask("Write to <EMAIL>."), has_mask("x < y")
    (True, False)
    """
    return _MASK.search(text) is not None


class Pii:
    """Masks a text and counts what was masked by kind; the patterns for e-mail and IPv4 are datatrove's, guarded.

    Takes time linear in the text, whatever it holds. Masking a masked text changes nothing.

    >>> Pii()("Mail jane@mail.org, or 1.2.3.4-beta.")
    ('Mail <EMAIL>, or 1.2.3.4-beta.', Counter({'email': 1}))
    """

    def __call__(self, text: str) -> tuple[str, Counter[str]]:
        """The masked text, and how often each of MASKS was put in."""
        found: Counter[str] = Counter()
        if any(hint in text for hint in _KEY_HINTS):
            text = _masked(text, "key", _KEY, lambda match: MASKS["key"], found)
        if "@" in text:
            text = _masked(text, "email", _EMAIL, self._email, found)
        if _NUMBER.search(text):
            for kind, pattern, replace in _NUMBERS:
                text = _masked(text, kind, pattern, replace, found)
        if _POINTS.search(text):
            text = _masked(text, "ip", _IPV4, self._ipv4, found)
        if ":" in text:
            text = _masked(text, "ip", _IPV6, _ipv6, found)
        return text, found

    @cached_property
    def _formatter(self) -> Any:
        from datatrove.pipeline.formatters.pii import PIIFormatter

        return PIIFormatter(email_replacement=MASKS["email"], ip_replacement=MASKS["ip"])

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: all of it is made anew in a worker process."""
        return {}

    def _email(self, match: re.Match[str]) -> str:
        """datatrove's pattern knows ASCII alone: letters of Latin, Greek and Cyrillic stand for an x."""
        replacer = self._formatter.emails_replacer
        text, end, parts = match[0], 0, []
        for address in replacer.regex.finditer(_LETTER.sub("x", text)):
            if _is_email(address[0]):
                parts += [text[end : address.start()], MASKS["email"]]
                end = address.end()
        return "".join([*parts, text[end:]])

    def _ipv4(self, match: re.Match[str]) -> str:
        if _VERSION.search(match.string, max(0, match.start() - 16), match.start()):
            return match[0]
        return str(self._formatter.ip_replacer.replace(match[0]))


def _masked(text: str, kind: str, pattern: re.Pattern[str], replace: Replace, found: Counter[str]) -> str:
    masked = pattern.sub(replace, text)
    if masked == text:  # of most texts nothing is taken
        return text
    if num := masked.count(MASKS[kind]) - text.count(MASKS[kind]):
        found[kind] += num
    return masked


def _is_email(address: str) -> bool:
    """A top-level domain is letters: `W@x.T` and `3@4.50` are none."""
    last = address.rsplit(".", 1)[-1]
    return len(last) >= 2 and last.isalpha()


def _iban(match: re.Match[str]) -> str:
    """Behind the number may stand a word of capitals: the longest that passes the check counts."""
    text = match[0]
    while True:
        packed = text.replace(" ", "")
        if len(packed) >= 15 and int("".join(str(int(c, 36)) for c in packed[4:] + packed[:4])) % 97 == 1:
            return MASKS["iban"] + match[0][len(text) :]
        text, space, _ = text.rpartition(" ")
        if not space:
            return match[0]


def _card(match: re.Match[str]) -> str:
    """The number of an issuer whose check digit (Luhn) is right."""
    digits = re.sub("[ -]", "", match[0])
    if not _ISSUER.fullmatch(digits):
        return match[0]
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return MASKS["card"] if sum(d - 9 * (d > 9) for d in doubled) % 10 == 0 else match[0]


def _plus(match: re.Match[str]) -> str:
    """+ and 8 to 15 digits in groups, or 10 to 15 in one; not in a sum."""
    num = sum(character.isdigit() for character in match[0])
    least = 10 if match[0][1:].isdigit() else 8
    in_sum = _SUM.search(match.string, max(0, match.start() - 4), match.start())
    return match[0] if in_sum or not least <= num <= 15 else MASKS["phone"]


def _ipv6(match: re.Match[str]) -> str:
    from datatrove.pipeline.formatters.pii import public_ip_validator

    return MASKS["ip"] if public_ip_validator(match[0]) else match[0]


# What may hold another stands before it.
_NUMBERS: tuple[tuple[str, re.Pattern[str], Replace], ...] = (
    ("iban", _IBAN, _iban),
    ("phone", _PLUS, _plus),
    ("card", _CARD, _card),
    ("phone", _US, lambda match: MASKS["phone"]),
    ("phone", _CUED, lambda match: match[0][: match.start(1) - match.start()] + MASKS["phone"]),
)
