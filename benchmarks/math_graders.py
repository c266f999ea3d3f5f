r"""`unmask bench math_graders`: answers graded per second, against Math-Verify called directly, in one process.

Made-up completions of about 1500 characters. GSM8K: a number after `####`. MATH: answers in the mix of MATH-500 (64 %
plain integers, 16 % fractions and decimals, 20 % expressions, tuples, intervals, equations, units), written differently
from the known answer, and every third one wrong. `--math FILE` takes the known answers of a file instead (each row's
own answer and, every third time, the next row's). Grader and worker process take turns, so a second of wall clock is a
second of one core. Math-Verify gets the answers alone, already extracted.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import reward
from benchmarks.timing import in_turn, machine
from reward.math.extract import final_answer
from reward.tasks import Task

Item = tuple[dict[str, Any], str]
"""Row and completion."""

_FILLER = "We look at the numbers one by one, and write down what follows from each of them. "
_WRITTEN = (
    ("2\\sqrt{{{n}}}", "\\sqrt{{{m}}}", lambda n: {"m": 4 * n}),
    ("\\frac{{{n}\\pi}}{{7}}", "{n}\\pi/7", lambda n: {}),
    ("{n}x^2-9", "-9+{n}x^2", lambda n: {}),
    ("(x+{n})(x-{n})", "x^2-{m}", lambda n: {"m": n * n}),
    ("({n}, \\frac{{1}}{{2}})", "\\left({n},0.5\\right)", lambda n: {}),
    ("[-{n},\\infty)", "x\\ge -{n}", lambda n: {}),
    ("y = {n}x+3", "{n}x-y+3=0", lambda n: {}),
    ("{n}\\text{{ cm}}^2", "{n} \\text{{ square centimeters}}", lambda n: {}),
    ("{n}-5i", "-5i+{n}", lambda n: {}),
    ("\\{{{n}, -{n}\\}}", "-{n}, {n}", lambda n: {}),
)
"""A known answer, the same one written differently, and what numbers that needs."""


def gsm8k_items(number: int) -> list[Item]:
    """Rows with a whole number, and completions that end with it."""
    text = _FILLER * 18
    return [
        ({"id": str(n), "question": "?", "answer": f"#### {n}"}, f"{text}\n#### {n if n % 3 else n + 1}")
        for n in range(1000, 1000 + number)
    ]


def math_items(number: int, *, seed: int = 0) -> list[Item]:
    """Rows in the mix of MATH-500, and completions of which every third one is wrong."""
    source = random.Random(seed)
    items = []
    for index in range(number):
        n = source.randrange(2, 10_000)
        wrong = n + 1 if index % 3 == 0 else n
        share = source.random()
        if share < 0.64:
            gold, answer = str(n), f"{wrong:,}"
        elif share < 0.80:
            gold, answer = f"\\frac{{{n}}}{{10007}}", f"\\dfrac{{{2 * wrong}}}{{20014}}"
        else:
            known, other, numbers = _WRITTEN[index % len(_WRITTEN)]
            gold, answer = known.format(n=n), other.format(n=wrong, **numbers(wrong))
        items.append(({"id": str(index), "gold": gold}, _completion(answer)))
    return items


def file_items(path: str) -> list[Item]:
    """Rows of a file in the format of task `math`, every third with the answer of the next row."""
    rows = reward.task("math", test_file=path).rows("test")
    answers = [rows[(index + 1) % len(rows) if index % 3 == 0 else index]["gold"] for index in range(len(rows))]
    return [
        ({"id": row["id"], "gold": row["gold"]}, _completion(answer)) for row, answer in zip(rows, answers, strict=True)
    ]


def math_verify(items: Sequence[Item]) -> Callable[[], int]:
    """Math-Verify on the same pairs, with its own time limit; the number of equal ones."""
    from math_verify import LatexExtractionConfig, parse, verify

    pairs = [(row["gold"], str(final_answer(completion).text)) for row, completion in items]
    config = [LatexExtractionConfig()]

    def run() -> int:
        found = [[parse(f"${text}$", extraction_config=config) for text in pair] for pair in pairs]
        return sum(verify(gold, answer) for gold, answer in found)

    return run


def grade(task: Task, items: Sequence[Item]) -> Counter[Any]:
    """Scores of all items, counted."""
    return Counter(getattr(task.grade(row, completion), "value", "failed") for row, completion in items)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="unmask bench math_graders", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=1000, help="answers of each kind and round")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--math", metavar="FILE", help="rows with known answers, for instance MATH-500")
    options = parser.parse_args(argv)
    math = file_items(options.math) if options.math else math_items(options.answers)
    gsm8k = gsm8k_items(10 * options.answers)
    tasks = {"gsm8k": reward.task("gsm8k"), "math": reward.task("math")}
    baseline = math_verify(math)

    print(machine(), flush=True)
    started = time.perf_counter()
    print(
        f"first answers: {dict(grade(tasks['math'], math[:20]))}, {time.perf_counter() - started:.2f} s with the start"
    )
    print(f"math: {dict(grade(tasks['math'], math))} of {len(math)}; Math-Verify alone says {baseline()} are equal")
    timings = in_turn(
        {
            "GSM8K": partial(grade, tasks["gsm8k"], gsm8k),
            "MATH": partial(grade, tasks["math"], math),
            "Math-Verify, same MATH answers": baseline,
        },
        repetitions=options.repetitions,
    )
    counts = {"GSM8K": len(gsm8k)}
    print("| what | answers per second, median (worst, best) |\n|---|---|")
    for name, seconds in timings.seconds.items():
        rates = sorted(counts.get(name, len(math)) / second for second in seconds)
        print(f"| {name} | {rates[len(rates) // 2]:,.0f} ({rates[0]:,.0f}, {rates[-1]:,.0f}) |")
    print(
        f"MATH against Math-Verify alone: {timings.ratio('MATH', 'Math-Verify, same MATH answers'):.1f} times as fast"
    )
    return 0


def _completion(answer: str) -> str:
    return f"{_FILLER * 18}\nSo the answer is $\\boxed{{{answer}}}$."


if __name__ == "__main__":
    raise SystemExit(main())
