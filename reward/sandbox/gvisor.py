"""The backend `gvisor`: programs run in a gVisor container that Ray's sandbox keeps, for hosts that have `runsc`.

One container a slot, no network, a read-only image. A run is two commands in it, as an ordinary user: the program, and
after it the removal of what it left. Ray is imported here only, and only when this backend is tried.
"""

from __future__ import annotations

import shlex
import shutil
from typing import Any

from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import BackendReport, SandboxError, Unavailable
from reward.sandbox.replay import ReplaySandbox

_MARGIN_S = 20.0
_START_TIMEOUT_S = 120.0
_CLEAN_TIMEOUT_S = 30.0
_USER = "65534:65534"
_FOLDER = "/job"
_CLEAN = "kill -9 -1; rm -rf /tmp/* /tmp/.[!.]* /dev/shm/* /var/tmp/* 2>/dev/null; true"
_NEEDED = ("runsc", "mkfs.erofs")


class GvisorSandbox(ReplaySandbox):
    """One container."""

    def __init__(self, runtime: Any, container: str) -> None:
        self.report = BackendReport("gvisor", works=True, layers=("gVisor", "no network", "own user", "rlimits"))
        self._runtime = runtime
        self._container = container

    def execute(self, program: str, *, wall_s: float) -> bytes:
        """See `ReplaySandbox`."""
        from ray.experimental import sandbox as ray_sandbox

        path = f"{_FOLDER}/run.py"
        try:
            self._runtime.write_file(self._container, path, program)
            command = ["/bin/sh", "-c", f"cd /tmp && exec python3 {shlex.quote(path)}"]
            done = self._runtime.exec(self._container, command, timeout=wall_s + _MARGIN_S, user=_USER)
            return str(done.stdout).encode()
        except (ray_sandbox.SandboxError, OSError) as error:
            raise SandboxError(f"gVisor container {self._container}: {error}") from error
        finally:
            self._clean()

    def close(self) -> None:
        """Delete the container."""
        self._runtime.delete(self._container)

    def _clean(self) -> None:
        from ray.experimental import sandbox as ray_sandbox

        command = ["/bin/sh", "-c", _CLEAN]
        try:
            self._runtime.exec(self._container, command, timeout=_CLEAN_TIMEOUT_S, user=_USER)
        except (ray_sandbox.SandboxError, OSError) as error:
            raise SandboxError(f"gVisor container {self._container} cannot be cleaned: {error}") from error


def open_slot(config: SandboxConfig) -> GvisorSandbox:
    """Start a container. Unavailable if this host lacks what that needs, or the image cannot be had."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        raise Unavailable(
            f"{' and '.join(missing)} not found",
            "install gVisor (`runsc`) and erofs-utils 1.7 or later on every node that grades",
        )
    from ray.experimental import sandbox as ray_sandbox

    runtime = ray_sandbox.SandboxRuntime()
    try:
        container = runtime.create(
            image=config.gvisor_image, workdir=_FOLDER, network="none", timeout_seconds=_START_TIMEOUT_S
        )
    except (ray_sandbox.SandboxError, OSError, RuntimeError, ValueError) as error:
        raise Unavailable(
            f"no container of image {config.gvisor_image!r}: {error}",
            "see that the image can be pulled (a mirror: RAY_SANDBOX_REGISTRY_MIRROR) and that runsc runs rootless",
        ) from error
    return GvisorSandbox(runtime, container)
