"""Programs become verdicts: slots, and one retry elsewhere when the machinery fails.

A verdict never comes from a failure of the machinery: after a second one the answer is `Failed`.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref

from reward.code.config import CodeConfig
from reward.code.problem import Problem
from reward.code.slot import BadTests, Slot
from reward.code.verdict import Kind, Verdict
from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import BackendReport, NoSandbox, SandboxError
from rollout.records import Failed

log = logging.getLogger(__name__)

INFRA_ERROR = "infra_error"
BAD_TESTS = "bad_tests"
_SLOT_TIMEOUT_S = 600.0
_NUM_TRIES = 2
_PROOFS: dict[SandboxConfig, BackendReport] = {}
"""What backends have shown in this process: the canaries run once for all graders with the same settings."""


class CodeGrader:
    """Slots that any number of threads may use; opened when they are first needed."""

    def __init__(self, config: CodeConfig) -> None:
        self.config = config
        self._free: queue.LifoQueue[Slot | None] = queue.LifoQueue()
        for _ in range(config.num_slots):
            self._free.put(None)
        self._open: set[Slot] = set()
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _close_all, self._open)

    def open(self) -> BackendReport:
        """Open every slot now; what their backend has shown to hold. NoSandbox says why none does."""
        taken = [self._free.get(timeout=_SLOT_TIMEOUT_S) for _ in range(self.config.num_slots)]
        try:
            taken = [slot or self._new_slot() for slot in taken]
        finally:
            for slot in taken:
                self._free.put(slot)
        return _PROOFS[self.config.sandbox]

    def grade(self, problem: Problem, program: str) -> Verdict | Failed:
        """The verdict on a program; NoSandbox if nothing works on this host."""
        limit_kb = self.config.sandbox.source_kb
        if len(program.encode("utf-8", "surrogatepass")) > limit_kb * 1024:
            return Verdict(Kind.NO_CODE, f"a program of more than {limit_kb} kB")
        why = ""
        for _ in range(_NUM_TRIES):
            try:
                return self._once(problem, program)
            except SandboxError as error:
                if isinstance(error, NoSandbox) and self.config.sandbox not in _PROOFS:
                    raise
                why = str(error)
                log.warning("grading a program failed, not the program: %s", error)
            except BadTests as error:
                return Failed(BAD_TESTS, str(error))
            except queue.Empty:
                why = f"no slot came free within {_SLOT_TIMEOUT_S:g} s"
        return Failed(INFRA_ERROR, why)

    def close(self) -> None:
        """End all jails."""
        self._finalizer()

    def _once(self, problem: Problem, program: str) -> Verdict:
        """One try. A slot that failed goes to the back and is opened anew, so that the next try is elsewhere."""
        slot = self._free.get(timeout=_SLOT_TIMEOUT_S)
        try:
            slot = slot or self._new_slot()
            return slot.run(problem, program)
        except BadTests:
            raise
        except BaseException:
            if slot is not None:
                self._drop(slot)
                slot = None
            raise
        finally:
            self._free.put(slot)

    def _new_slot(self) -> Slot:
        with self._lock:
            slot = Slot(self.config, proof=_PROOFS.get(self.config.sandbox))
            _PROOFS[self.config.sandbox] = slot.report
            self._open.add(slot)
        return slot

    def _drop(self, slot: Slot) -> None:
        with self._lock:
            self._open.discard(slot)
        slot.close()


def _close_all(slots: set[Slot]) -> None:
    while slots:
        slots.pop().close()
