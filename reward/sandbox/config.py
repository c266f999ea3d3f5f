"""Settings of the sandbox for untrusted programs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from reward.sandbox.records import Limits

BackendName = Literal["namespace", "landlock", "gvisor", "remote"]


class SandboxConfig(BaseModel):
    """Which isolation to use, and what one program may use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["auto", "namespace", "landlock", "gvisor", "remote", "unsafe"] = "auto"
    """`auto` takes the first of `backends` that passes its canary programs; a name takes that one or refuses."""
    backends: tuple[BackendName, ...] = ("namespace", "landlock", "gvisor", "remote")
    """What `auto` may choose from, best first."""
    wall_s: float = Field(default=10.0, gt=0)
    """From start to end of one program."""
    cpu_s: float = Field(default=10.0, gt=0)
    """Processor time of one program; rounded up to whole seconds."""
    memory_mb: int = Field(default=1024, ge=64)
    """Address space of one program."""
    tmp_mb: int = Field(default=16, ge=1)
    """Files of one program together."""
    file_mb: int = Field(default=1, ge=1)
    """One file."""
    num_files: int = Field(default=64, ge=16)
    """Open descriptors."""
    num_threads: int = Field(default=16, ge=1)
    """Threads beside the main one."""
    output_kb: int = Field(default=64, ge=1)
    """Captured stdout, and as much stderr; what comes beyond is dropped."""
    message_kb: int = Field(default=1024, ge=1)
    """One message to or from the program."""
    source_kb: int = Field(default=256, ge=1)
    """Program text."""
    python: str | None = None
    """Interpreter for the programs; the one this process runs on if not given."""
    remote_url: str | None = None
    """Address of a SandboxFusion-compatible service, for instance `http://sandbox:8080`."""
    gvisor_image: str = "python:3.11-slim"
    """Container image of the `gvisor` backend."""
    allow_unsafe: bool = False
    """Permit the backend `unsafe`, which isolates nothing: for programs you wrote yourself. Logged at each start."""

    def limits(self) -> Limits:
        """The limits of one job."""
        return Limits(**{name: getattr(self, name) for name in Limits.__slots__})
