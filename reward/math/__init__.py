"""Mathematical answers: where they stand in a completion, and whether they equal the known one.

`Verifier.judge` is the door: exact rationals here, everything else in a worker process that can be killed at any
moment. No text of a model is ever evaluated as Python.
"""

from reward.math.extract import Extracted, final_answer
from reward.math.verdict import Verdict, Verifier

__all__ = ["Extracted", "Verdict", "Verifier", "final_answer"]
