"""`unmask bench serve_soak`: the rollout service on Ray Serve under mixed load for minutes, while engines are killed.

Two engines of the built-in model. Clients send rollouts, streams, completions, infills, bad requests and requests that
they abandon. Every so often the younger engine is killed (SIGKILL); the older one and the HTTP side live through the
whole time, so their memory tells of leaks.

What must hold: every answer equals the one that the engine alone gives to that request, or is a refusal that says to
come again (429 or 503 with Retry-After); a bad request is refused with 400; nothing takes longer than its deadline;
memory of the HTTP side and of the older engine, after the first fifth, stays within 10 %; in the end the engines are
empty.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

import models
import rollout
import samplers
from benchmarks.serve import bodies
from benchmarks.timing import machine

PORT = 8472
_DEADLINE_S = 150.0
_MAX_GROWTH = 0.10
_BAD = {"prompt": "1+1=", "max_new_token": 3}
_INFILL = {"prefix": "1+", "suffix": "=2", "max_new_tokens": 60, "sampler": "ar", "seed": 3}


@dataclass
class Watched:
    """What happened."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    kills: int = 0
    memory: dict[str, list[int]] = field(default_factory=dict)
    """Resident bytes by process, over time."""


def expected(requests: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Tokens that the engine alone gives."""
    denoiser = models.load("tiny")
    found = []
    for body in requests:
        engine = rollout.Engine(denoiser, samplers.build(body["sampler"]), block_length=body.get("block_length"))
        prompt = models.encode_prompt(denoiser, body["prompt"])
        (answer,) = engine.generate(
            [prompt], max_new_tokens=body["max_new_tokens"], temperature=body["temperature"], seed=body["seed"]
        )
        found.append(answer.tokens.tolist())
    return found


class Clients:
    """The load."""

    def __init__(self, address: str, requests: Sequence[dict[str, Any]], answers: Sequence[list[int]]) -> None:
        self._address, self._requests, self._answers = address, requests, answers
        self.seen = Watched()

    async def run(self, number: int, until: float) -> None:
        """So many clients until a time."""
        timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._client(session, random.Random(seed), until) for seed in range(number)))

    async def _client(self, session: aiohttp.ClientSession, draw: random.Random, until: float) -> None:
        while time.monotonic() < until:
            began, kind = (
                time.monotonic(),
                draw.choices(("whole", "stream", "gone", "bad", "infill"), (8, 4, 2, 1, 1))[0],
            )
            try:
                await getattr(self, f"_{kind}")(session, draw)
            except (TimeoutError, aiohttp.ClientError) as error:
                self.seen.wrong.append(f"{kind}: {type(error).__name__} {error}"[:200])
            self.seen.slowest_s = max(self.seen.slowest_s, time.monotonic() - began)

    async def _whole(self, session: aiohttp.ClientSession, draw: random.Random) -> None:
        number = draw.randrange(len(self._requests))
        async with session.post(f"{self._address}/v1/rollouts", json=self._requests[number]) as response:
            if await self._refused(response):
                return
            answer = await response.json()
        self._compare(number, answer["rollouts"][0]["tokens"], "right")

    async def _stream(self, session: aiohttp.ClientSession, draw: random.Random) -> None:
        number = draw.randrange(len(self._requests))
        body = self._requests[number] | {"stream": True}
        async with session.post(f"{self._address}/v1/rollouts", json=body) as response:
            if await self._refused(response):
                return
            text = (await response.read()).decode()
        data = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        if "error" in data[-1]:
            self.seen.outcomes["stream broken off, retryable"] += 1
            if data[-1]["error"]["code"] != "engine_lost":
                self.seen.wrong.append(str(data[-1]))
            return
        self._compare(number, data[-1]["tokens"], "right, streamed")

    async def _gone(self, session: aiohttp.ClientSession, draw: random.Random) -> None:
        body = _INFILL | {"max_new_tokens": 300, "stream": draw.random() < 0.5}
        try:
            async with (
                asyncio.timeout(draw.random()),
                session.post(f"{self._address}/v1/infill", json=body) as response,
            ):
                await response.content.readline()
        except TimeoutError:
            pass
        self.seen.outcomes["abandoned"] += 1

    async def _bad(self, session: aiohttp.ClientSession, draw: random.Random) -> None:
        async with session.post(f"{self._address}/v1/rollouts", json=_BAD) as response:
            if response.status != 400:
                self.seen.wrong.append(f"a bad request got {response.status}")
        self.seen.outcomes["refused as wrong"] += 1

    async def _infill(self, session: aiohttp.ClientSession, draw: random.Random) -> None:
        async with session.post(f"{self._address}/v1/infill", json=_INFILL) as response:
            if await self._refused(response):
                return
            answer = await response.json()
        if len(answer["infills"][0]["tokens"]) != _INFILL["max_new_tokens"]:
            self.seen.wrong.append("an infill has another length")
        self.seen.outcomes["infill"] += 1

    async def _refused(self, response: aiohttp.ClientResponse) -> bool:
        if response.status == 200:
            return False
        if response.status in (429, 503) and "Retry-After" in response.headers:
            self.seen.outcomes[f"retryable {response.status}"] += 1
        else:
            self.seen.wrong.append(f"{response.status}: {(await response.text())[:200]}")
        return True

    def _compare(self, number: int, tokens: list[int], outcome: str) -> None:
        if tokens == self._answers[number]:
            self.seen.outcomes[outcome] += 1
        else:
            self.seen.wrong.append(f"request {number}: {tokens} instead of {self._answers[number]}")


def replicas(deployment: str) -> list[psutil.Process]:
    """Processes of a deployment that were started from here, the oldest first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(f"ServeReplica:unmask:{deployment}" in part for part in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.create_time())


async def disturb(seen: Watched, until: float, *, every_s: float) -> None:
    """Kill the younger engine again and again, and note the memory of those that stay."""
    next_kill = time.monotonic() + every_s
    while time.monotonic() < until:
        await asyncio.sleep(5)
        front, engines = replicas("front"), replicas("engine")
        for name, process in (("HTTP side", front[0]), ("older engine", engines[0])):
            seen.memory.setdefault(name, []).append(process.memory_info().rss)
        if time.monotonic() > next_kill and len(engines) > 1 and time.monotonic() < until - 30:
            os.kill(engines[-1].pid, signal.SIGKILL)
            seen.kills += 1
            next_kill = time.monotonic() + every_s


def report(seen: Watched, seconds: float, left: float) -> list[str]:
    """Print what was seen; the promises that do not hold."""
    print(f"{machine()}\n{seconds:.0f} s, {sum(seen.outcomes.values())} requests, {seen.kills} engines killed\n")
    for name, number in sorted(seen.outcomes.items()):
        print(f"- {name}: {number}")
    print(f"- slowest: {seen.slowest_s:.1f} s")
    fails = [*seen.wrong[:10]]
    for name, sizes in seen.memory.items():
        early = sizes[len(sizes) // 5 :]
        growth = max(early[-3:]) / early[0] - 1
        print(f"- memory of the {name}: {early[0] / 1e6:.0f} MB after a fifth, {early[-1] / 1e6:.0f} MB at the end")
        if growth > _MAX_GROWTH:
            fails.append(f"memory of the {name} grew by {100 * growth:.0f} %")
    if left:
        fails.append(f"{left:.0f} sequences are left in the engines")
    return fails


async def soak(address: str, seconds: float, clients: int, every_s: float) -> tuple[Watched, float]:
    """Load and kills; what was seen, and sequences left in the end."""
    requests = bodies(60)
    load = Clients(address, requests, expected(requests))
    until = time.monotonic() + seconds
    await asyncio.gather(load.run(clients, until), disturb(load.seen, until, every_s=every_s))
    left, patience = 1.0, time.monotonic() + 60
    async with aiohttp.ClientSession() as session:
        while left and time.monotonic() < patience:
            async with session.get(f"{address}/metrics") as response:
                lines = (await response.text()).splitlines()
            names = ("unmask_engine_active{", "unmask_engine_waiting{")
            left = sum(float(line.split()[-1]) for line in lines if line.startswith(names))
            await asyncio.sleep(1)
    return load.seen, left


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, and print the report; 1 if a promise does not hold."""
    parser = argparse.ArgumentParser(prog="unmask bench serve_soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kill-every-s", type=float, default=60.0)
    given = parser.parse_args(arguments)
    from ray import serve

    from cluster.config import ClusterConfig
    from cluster.ray_start import ray_session
    from rollout.serve import ServeConfig, application

    with ray_session(ClusterConfig(mode="ray", address="local", num_cpus=4)):
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT})
        config = ServeConfig(min_replicas=2, max_replicas=2, cpus_per_replica=0.5, cpus_of_front=0.5)
        serve.run(application(config), name="unmask")
        began = time.monotonic()
        address = f"http://127.0.0.1:{PORT}"
        seen, left = asyncio.run(soak(address, 60 * given.minutes, given.clients, given.kill_every_s))
        seconds = time.monotonic() - began
        serve.shutdown()
    fails = report(seen, seconds, left)
    for fail in fails:
        print(f"missed: {fail}")
    return int(bool(fails))
