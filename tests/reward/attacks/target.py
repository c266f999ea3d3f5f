"""The problem that every attack is made against, and the secrets around it.

`total` is the sum of a list. An attack that only reaches out of its jail computes the right sums if, and only if, it
got what it must not get: so each attack is rejected exactly if its verdict is not `pass`.
"""

from reward.code.problem import Problem

SUM = Problem(
    tests=(
        "assert total([1, 2, 3]) == 6",
        "assert total([]) == 0",
        "assert total([10, -4, 4711]) == 4717",
        "assert sorted([total([5]), total([2, 2])]) == [4, 5]",
        "assert total(list(range(731))) == 266815",
    ),
    reference="def total(xs):\n    return sum(xs)\n",
)
RIGHT = "def total(xs):\n    return sum(xs)\n"
WRONG = "def total(xs):\n    return len(xs)\n"

ECHO = Problem(stdio=tuple({"input": f"{n}\n", "output": f"{n * n + 4711}\n"} for n in (3, 14, 159)))
RIGHT_ECHO = "n = int(input())\nprint(n * n + 4711)\n"

SECRET = "unmask-secret-6f1d"
"""Planted in the environment, in a file and in a listening socket of the process that grades."""
MARK = "unmask-mark-83ab"
"""What attacks leave behind, where they can."""
