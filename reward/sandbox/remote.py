"""The backend `remote`: a service with SandboxFusion's HTTP interface runs the programs.

    POST <url>/run_code  {"code", "language": "python", "run_timeout", "compile_timeout"}
    -> {"status": "Success" | "Failed" | "SandboxError", "message", "run_result": {"status", "return_code", "stdout",
        "stderr"}}

What isolates the programs there is that service's affair. The canaries show that a program there reaches nothing here,
keeps to its limits, and finds nothing of the one before.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request

from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import BackendReport, SandboxError, Unavailable
from reward.sandbox.replay import MAX_PRINTED_BYTES, ReplaySandbox

_MARGIN_S = 10.0
"""Time for starting and for the way, beyond the program's own."""


class RemoteSandbox(ReplaySandbox):
    """One connection at a time to a service."""

    def __init__(self, url: str) -> None:
        self.report = BackendReport("remote", works=True, layers=("another host", "rlimits"))
        self._url = f"{url.rstrip('/')}/run_code"

    def execute(self, program: str, *, wall_s: float) -> bytes:
        """See `ReplaySandbox`."""
        request = urllib.request.Request(
            self._url,
            data=json.dumps(
                {
                    "code": program,
                    "language": "python",
                    "compile_timeout": _MARGIN_S,
                    "run_timeout": wall_s + _MARGIN_S,
                }
            ).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=wall_s + 2 * _MARGIN_S) as response:
                answer = json.loads(response.read(MAX_PRINTED_BYTES))
            if answer["status"] not in ("Success", "Failed"):
                raise SandboxError(f"{self._url} answers {answer['status']}: {answer.get('message')!r:.300}")
            result = answer["run_result"]
            if result is None:
                raise SandboxError(f"{self._url} did not run the program: {answer.get('message')!r:.300}")
            return str(result.get("stdout") or "").encode()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SandboxError(f"{self._url}: {type(error).__name__}: {error}") from error


def open_slot(config: SandboxConfig) -> RemoteSandbox:
    """A slot at the service named in the settings. Unavailable if none is named."""
    if config.remote_url is None:
        raise Unavailable("no remote_url is set", "set remote_url to the address of a SandboxFusion service")
    parts = urllib.parse.urlsplit(config.remote_url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise Unavailable(
            f"remote_url is {config.remote_url!r}", "write it as http://host:port or https://host:port, without a path"
        )
    return RemoteSandbox(config.remote_url)
