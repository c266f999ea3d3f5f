"""How threads of matrix products wait for each other."""

from __future__ import annotations

import os


def let_idle_threads_sleep() -> None:
    """Arithmetic threads of this process, and of those that it starts, give way while they wait for each other.

    Cores are shared: with other actors, with the HTTP side of a service, with whatever else runs. Threads that spin at
    a barrier for one that has no core then cost several times the work itself (docs/serving.md). Without effect
    once torch has been imported; whoever sets OMP_WAIT_POLICY decides instead.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
