"""Made-up mathematical prose, some of it in LaTeX: text to learn a tokenizer from that belongs to nobody."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence


def prose(seed: int, n: int) -> Iterator[str]:
    """`n` made-up paragraphs of arithmetic, algebra and short stories with numbers, some of them in LaTeX."""
    rng = random.Random(seed)
    kinds: Sequence[Callable[[random.Random], str]] = (_story, _equation, _fraction, _power, _derivative, _thinking)
    for _ in range(n):
        yield rng.choice(kinds)(rng)


def _story(rng: random.Random) -> str:
    name = rng.choice(("Ada", "Emmy", "Carl", "Sofia", "Leon"))
    thing = rng.choice(("apples", "stamps", "pages", "tiles"))
    have, more = rng.randint(2, 99), rng.randint(2, 99)
    return (
        f"{name} has {have} {thing} and is given {more} more. How many {thing} does {name} have now? "
        f"We add the two numbers: {have} + {more} = {have + more}. The answer is \\boxed{{{have + more}}}."
    )


def _equation(rng: random.Random) -> str:
    a, x, b = rng.randint(2, 12), rng.randint(-9, 20), rng.randint(1, 40)
    return (
        f"Solve for $x$: ${a}x + {b} = {a * x + b}$. Subtracting ${b}$ from both sides gives ${a}x = {a * x}$, "
        f"and therefore $x = \\frac{{{a * x}}}{{{a}}} = {x}$."
    )


def _fraction(rng: random.Random) -> str:
    a, b, c = rng.randint(1, 9), rng.randint(2, 12), rng.randint(1, 9)
    return (
        "The two fractions have the same denominator, hence\n"
        f"\\[ \\frac{{{a}}}{{{b}}} + \\frac{{{c}}}{{{b}}} = \\frac{{{a + c}}}{{{b}}}. \\]\n"
        f"This is {'less' if a + c < b else 'not less'} than one."
    )


def _power(rng: random.Random) -> str:
    n = rng.randint(2, 30)
    return (
        f"Let $n = {n}$. Then $\\sum_{{k=1}}^{{n}} k = \\frac{{n(n+1)}}{{2}} = {n * (n + 1) // 2}$, while "
        f"$n^{{2}} = {n * n}$ and $\\sqrt{{{n * n}}} = {n}$. Note that {n} is {'even' if n % 2 == 0 else 'odd'}."
    )


def _derivative(rng: random.Random) -> str:
    a, n = rng.randint(2, 9), rng.randint(2, 6)
    return (
        f"\\begin{{align*}}\n  f(x) &= {a}x^{{{n}}} \\\\\n  f'(x) &= {a * n}x^{{{n - 1}}}\n\\end{{align*}}\n"
        f"so that $\\int_0^1 f'(x)\\,dx = f(1) - f(0) = {a}$, by the fundamental theorem of calculus."
    )


def _thinking(rng: random.Random) -> str:
    a, b = rng.randint(11, 99), rng.randint(2, 9)
    return (
        f"Okay, let me think about this step by step. What is {a} \\times {b}? First, {a // 10 * 10} times {b} is "
        f"{a // 10 * 10 * b}. Next, {a % 10} times {b} is {a % 10 * b}. Wait, I should check that: together they make "
        f"{a * b}. So the final answer is **{a * b}**."
    )
