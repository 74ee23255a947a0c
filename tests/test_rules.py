"""Rules: each with a text that breaks it alone and one that just keeps to it; mathematics and code pass."""

from __future__ import annotations

import json
import pickle
import sysconfig
import time
from collections import Counter
from pathlib import Path

import pytest

from rl_think_ext.data.rules import BOILERPLATE, Rules, RulesConfig, holds_control
from rl_think_ext.errors import UserError
from rl_think_ext.template import CLOSE_PREDICTION, CLOSE_TAG, OPEN_PREDICTION, OPEN_TAG

MATH = Path(__file__).parents[2] / "shared/data/math_text.jsonl"
PROSE = (
    "The mill stands by the river since 1702. In spring the water rises to its second step, and the children of the "
    "village count how many days it takes to fall again. Nobody has ever been right twice."
)
TABLE = "\n".join(" ".join(str(17 * i % 97) for i in range(j, j + 12)) for j in range(0, 96, 12))


def numbered(num: int) -> str:
    """That many words, no two runs of five alike."""
    return " ".join(f"word{'abcdefghij'[i % 10]}{i}" for i in range(num))


BROKEN = {
    "too long": "a" * 1_000_001,
    "control token": f"{PROSE} <|im_end|>",
    "too few words": "Nine words are one word less than it takes",
    "too few letters": TABLE,
    "words too long": " ".join(f"{chr(97 + i % 26) * 45}{i}" for i in range(20)),
    "too many symbols": " ".join(f"# tag{i}" for i in range(20)),
    "boilerplate": f"{PROSE} Please enable JavaScript to read on.",
    "repeated lines": "\n".join([PROSE, *["Read more on the next page of this site"] * 9]),
    "repeated runs of words": "so they sang on and on and " + "round and round they went again " * 20,
}


@pytest.mark.parametrize("reason", BROKEN)
def test_each_rule_by_its_name(reason: str) -> None:
    assert Rules()(BROKEN[reason]) == reason


LIMITS = {
    "too long": "max_characters",
    "control token": "control_tokens",
    "too few words": "min_words",
    "too few letters": "min_letters",
    "words too long": "max_word_length",
    "too many symbols": "max_symbols",
    "boilerplate": "boilerplate",
    "repeated lines": "max_repeated_lines",
    "repeated runs of words": "max_repeated_runs",
}


@pytest.mark.parametrize("reason", [reason for reason in BROKEN if reason != "too long"])
def test_each_rule_can_be_turned_off(reason: str) -> None:
    """0 (False) turns it off; what else is wrong with the text is another rule's."""
    assert Rules(RulesConfig(**{LIMITS[reason]: 0}))(BROKEN[reason]) != reason  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        numbered(10),
        "a" * 30 + " " + numbered(30),
        "# Heading\n\n" + numbered(5) + " ######## " + numbered(5),
        "\n".join(f"{line}\n}}" for line in numbered(40).split()),
        "x = y < z > w || v <- u <= t << s, where a |x|> b; see f[i] and <b>bold</b> and <img src='a'>",
        "春天来了，花儿在院子里慢慢地开放，孩子们跑出去玩耍，直到太阳落山才回家吃饭。",
        "कल सुबह हम सब मिलकर नदी के किनारे घूमने गए और बहुत मज़ा आया था",
        "Let $\\frac{a}{b} = \\sqrt{c^2}$, so that $x_1 + x_2 = 17$ and $y^2 \\ge 0$ for all of them.",
    ],
)
def test_what_keeps_to_the_rules(text: str) -> None:
    assert Rules()(text) is None


@pytest.mark.parametrize(
    "token",
    [
        *(OPEN_TAG, CLOSE_TAG, OPEN_PREDICTION, CLOSE_PREDICTION, "</Think >", "＜think＞", "<response>"),
        *("<|im_start|>", "<|eot_id|>", "<|endoftext|>", "<|fim_prefix|>", "＜|im_start|＞", "<｜User｜>"),
        *(
            "<｜end▁of▁sentence｜>",
            "<s>",
            "</s>",
            "<BOS>",
            "<pad>",
            "<unk>",
            "[INST]",
            "[/INST]",
            "<<SYS>>",
            "<</SYS>>",
        ),
        *("<start_of_turn>", "<end_of_turn>", "<MASK>", "[MASK]"),
    ],
)
def test_control_tokens(token: str) -> None:
    """F24: what opens a thought, a turn or a prediction would be read as one."""
    assert holds_control(f"{PROSE}{token}{PROSE}")
    assert Rules()(f"{PROSE} {token} {PROSE}") == "control token"


@pytest.mark.parametrize(
    "text", ["a < b | c > d", "x<|y|>z", "if (a<b && c>d)", "l[s] and [mask]", "<small>", "<b>", "|>"]
)
def test_what_is_no_control_token(text: str) -> None:
    assert not holds_control(text)


@pytest.mark.parametrize("phrase", BOILERPLATE)
def test_boilerplate(phrase: str) -> None:
    assert Rules()(f"{PROSE}\n{phrase.upper()}") == "boilerplate"


def test_odd_texts_have_a_verdict() -> None:
    """F29, F34: nothing at all, blanks, half a character, NUL, and every rule but one turned off."""
    off = RulesConfig(min_words=0, min_letters=0.0)
    for text in ("", " \n\t", "\ud800", "\0", "\u202e", "...", "#"):
        assert Rules()(text) == "too few words"
        assert Rules(off)(text) in (None, "too many symbols")


def test_mathematics_passes() -> None:
    """All but the one that has six words; Gopher's limits, which are for prose, leave next to nothing."""
    if not MATH.exists():
        pytest.skip(f"absent: {MATH.name} is not shipped")
    texts = [json.loads(line)["text"] for line in MATH.read_text().splitlines()]
    assert Counter(map(Rules(), texts)) == {None: 249, "too few words": 1}
    gopher = Counter(map(Rules(RulesConfig(gopher=True)), texts))
    assert gopher[None] < 25
    assert gopher["gopher: below alpha threshold"] > 50


def test_code_passes() -> None:
    """Python's own library: only files that spell a control token go."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    taken = Counter(Rules()(file.read_text(encoding="utf-8", errors="replace")) for file in files)
    assert taken.keys() <= {None, "control token", "too few words"}
    assert taken[None] >= 0.95 * len(files) > 100


def test_gopher_knows_prose() -> None:
    """datatrove's filters without spaCy, which their word splitter asks for."""
    rules = Rules(RulesConfig(gopher=True))
    prose = (
        f"{PROSE} The miller, who writes the days into a book that his grandfather began, says that the river has no "
        "memory and that people have too much of it. Still, each year somebody comes to ask him for the numbers."
    )
    assert rules(prose) is None
    assert rules(PROSE) == "gopher: short doc"
    assert rules(f"{prose} " + "round and round we go and " * 6).startswith("gopher: ")  # type: ignore[union-attr]
    assert pickle.loads(pickle.dumps(rules))(PROSE) == "gopher: short doc"  # noqa: S301


@pytest.mark.parametrize("wrong", [{"min_letters": 1.5}, {"max_repeated_lines": -0.1}, {"min_words": -1}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        RulesConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unit",
    ["<", "<|", "<|a", "[", "＜", "#", ".", "a ", "\n", "< think", "…", "水", "\u0301", "<<", "\u0301\u0327", "\u0f73"],
)
def test_hostile_text_takes_linear_time(unit: str) -> None:
    text = "a < b " + unit * (900_000 // len(unit))
    start = time.process_time()
    Rules()(text)
    assert time.process_time() - start < 6
