"""`unmask bench graders`: answers and programs graded a second on one core.

Runs `unmask bench math_graders` and `unmask bench code_graders`, which have options of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks import code_graders, math_graders


def main(argv: Sequence[str] | None = None) -> int:
    """Print both reports; 1 if one of them finds a wrong verdict."""
    parser = argparse.ArgumentParser(
        prog="unmask bench graders", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="MBPP's published file, for the programs")
    options = parser.parse_args(argv)
    found = math_graders.main([])
    print(flush=True)
    return found or code_graders.main(["--rows", options.rows] if options.rows else [])


if __name__ == "__main__":
    raise SystemExit(main())
