"""`unmask bench serve`: the rollout service under load, over real HTTP on loopback.

A server process holds the built-in model; this process is the clients. Each client sends a request, reads the whole
answer, and sends the next one. Requests are rows of arithmetic, Countdown and 4x4 Sudoku with 8, 16 and 24 response
slots, temperature 1, two samplers (confidence, and threshold with block 8), fixed seeds: every run asks for the same.
For 1, 8, 32 and 64 clients: requests and answer tokens a second, and latencies.

Overhead of the service: the same requests, 32 under way at any time, through the engine alone in the same server
process (no HTTP, no threads), and through HTTP by 32 clients, in turn; 100 * (served / alone - 1) of the wall-clock
times. `--ray` puts the service on Ray Serve (one engine) instead of one process.

Bounds that the report checks: 32 clients give at least 3 times the tokens of one; the overhead is at most 15 %.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import aiohttp

CLIENTS = (1, 8, 32, 64)
BUSY_CLIENTS = 32
MIN_RATIO, MAX_OVERHEAD = 3.0, 15.0
_SLOTS = {"arithmetic": 8, "countdown": 16, "sudoku4": 24}
_SAMPLERS: tuple[dict[str, Any], ...] = ({"sampler": "confidence"}, {"sampler": "threshold", "block_length": 8})
_DEADLINE_S = 120.0


def bodies(number: int) -> list[dict[str, Any]]:
    """Requests to `/v1/rollouts`."""
    import reward

    tasks = {name: reward.task(name) for name in _SLOTS}
    rows = {name: itertools.cycle(task.rows("test")[:50]) for name, task in tasks.items()}
    made = []
    for seed, name, sampler in zip(range(number), itertools.cycle(_SLOTS), itertools.cycle(_SAMPLERS), strict=False):
        prompt = tasks[name].prompt(next(rows[name]))
        text = prompt.text or (prompt.messages or ({"content": ""},))[-1]["content"]
        made.append({"prompt": text, "max_new_tokens": _SLOTS[name], "temperature": 1.0, "seed": seed, **sampler})
    return made


@dataclass(frozen=True)
class Load:
    """What a number of clients saw."""

    clients: int
    seconds: float
    latencies: tuple[float, ...]
    tokens: int
    refused: int

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens a second."""
        return self.tokens / self.seconds

    def row(self, baseline: Load) -> str:
        """A row of the table."""
        cuts = quantiles(self.latencies, n=100, method="inclusive")
        return (
            f"| {self.clients} | {len(self.latencies) / self.seconds:.1f} | {self.tokens_per_s:.0f} | "
            f"{self.tokens_per_s / baseline.tokens_per_s:.2f} | {1e3 * cuts[49]:.0f} | {1e3 * cuts[94]:.0f} | "
            f"{1e3 * cuts[98]:.0f} | {self.refused} |"
        )


async def load(address: str, clients: int, requests: Sequence[dict[str, Any]]) -> Load:
    """Answer all requests with so many clients."""
    waiting, latencies, tokens, refused = iter(requests), list[float](), 0, 0

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal tokens, refused
        for body in waiting:
            began = time.perf_counter()
            async with session.post(f"{address}/v1/rollouts", json=body) as response:
                answer = await response.json()
            latencies.append(time.perf_counter() - began)
            refused += response.status != 200
            if response.status == 200:
                tokens += answer["usage"]["completion_tokens"]

    timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
    began = time.perf_counter()
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return Load(clients, time.perf_counter() - began, tuple(latencies), tokens, refused)


@contextmanager
def server(*, on_ray: bool, threads: int) -> Iterator[Server]:
    """A server process and its address."""
    command = [sys.executable, "-m", "benchmarks.serve_target", "--threads", str(threads), *["--ray"][: int(on_ray)]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(process)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


class Server:
    """The server process: it says its address, and runs requests through the engine alone when told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._answer()["address"]

    def alone(self, requests: Sequence[dict[str, Any]], clients: int) -> float:
        """Seconds of the same requests through the engine alone."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"clients": clients, "requests": list(requests)}) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError("the server process ended; its errors stand above")


def overhead(target: Server, number: int, repetitions: int) -> list[float]:
    """Percent by which HTTP makes the same requests slower, a repetition each."""
    found = []
    requests = bodies(number)
    for _ in range(repetitions):
        alone = target.alone(requests, BUSY_CLIENTS)
        served = asyncio.run(load(target.address, BUSY_CLIENTS, requests)).seconds
        found.append(100 * (served / alone - 1))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(prog="unmask bench serve", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=384, help="requests at 8 and more clients; one has a quarter")
    parser.add_argument("--repetitions", type=int, default=5, help="of the overhead")
    parser.add_argument("--ray", action="store_true", help="on Ray Serve instead of in one process")
    parser.add_argument("--threads", type=int, default=1, help="of the engine's matrix products")
    given = parser.parse_args(arguments)
    from benchmarks.timing import machine
    from cluster.idle_threads import let_idle_threads_sleep

    let_idle_threads_sleep()
    place = "Ray Serve, one engine" if given.ray else "one process"
    print(f"{machine()}\n{place}, {given.requests} requests, {given.threads} threads\n")
    print("| clients | requests/s | tokens/s | times one client | p50 ms | p95 ms | p99 ms | refused |")
    print("|---|---|---|---|---|---|---|---|")
    with server(on_ray=given.ray, threads=given.threads) as target:
        asyncio.run(load(target.address, 8, bodies(24)))
        loads = []
        for clients in CLIENTS:
            number = given.requests if clients > 1 else max(16, given.requests // 4)
            loads.append(asyncio.run(load(target.address, clients, bodies(number))))
            print(loads[-1].row(loads[0]), flush=True)
        extra = [] if given.ray else overhead(target, given.requests, given.repetitions)
    ratio = next(one for one in loads if one.clients == BUSY_CLIENTS).tokens_per_s / loads[0].tokens_per_s
    fails = [f"{BUSY_CLIENTS} clients give {ratio:.2f} times one; wanted {MIN_RATIO}"] if ratio < MIN_RATIO else []
    if extra:
        print(
            f"\noverhead at {BUSY_CLIENTS} clients: median {median(extra):.1f} % of the engine alone "
            f"({min(extra):.1f} to {max(extra):.1f}, {len(extra)} repetitions)"
        )
        if median(extra) > MAX_OVERHEAD:
            fails.append(f"the overhead is {median(extra):.1f} %; wanted at most {MAX_OVERHEAD}")
    for fail in fails:
        print(f"missed: {fail}")
    return int(bool(fails))
