"""The server process of `unmask bench serve`; ends when its input does.

A line of input `{"clients", "requests"}` runs the requests through a live engine alone, so many under way at any time,
and answers `{"seconds"}`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import models
from rollout import Request, sequence_seed
from rollout.live import Decoding, Finished, LiveEngine
from rollout.service.config import EngineConfig


def alone(denoiser: models.Denoiser, requests: Sequence[Mapping[str, Any]], clients: int) -> float:
    """Seconds of the requests through the engine, the next one joining as soon as one is finished."""
    began = time.perf_counter()
    engine = LiveEngine(denoiser)
    waiting = iter(requests)
    under_way = 0
    while True:
        while under_way < clients and (body := next(waiting, None)) is not None:
            tokens = models.encode_prompt(denoiser, body["prompt"])
            request = Request(
                tokens,
                body["max_new_tokens"],
                seed=sequence_seed(body["seed"], ",".join(map(str, tokens)), 0),
                temperature=body["temperature"],
            )
            engine.submit(request, Decoding(body["sampler"], block_length=body.get("block_length")))
            under_way += 1
        if not under_way:
            return time.perf_counter() - began
        under_way -= sum(isinstance(event, Finished) for event in engine.step())


@contextmanager
def on_ray(engine: EngineConfig) -> Iterator[str]:
    """The service on Ray Serve."""
    from ray import serve

    from cluster.config import ClusterConfig
    from cluster.ray_start import ray_session
    from rollout.serve import ServeConfig, application

    port = 8471
    with ray_session(ClusterConfig(mode="ray", address="local")):
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(ServeConfig(engine=engine, cpus_of_front=0.5)), name="unmask")
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()


def serve_until_told() -> None:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    from rollout.service.local import local_app, running

    given = parser.parse_args()
    engine = EngineConfig(threads=given.threads)
    place = on_ray(engine) if given.ray else running(local_app({"tiny": "tiny"}, engine=engine)[0])
    torch.set_num_threads(given.threads)
    denoiser = models.load("tiny")
    with place as address:
        print(json.dumps({"address": address}), flush=True)
        for line in sys.stdin:
            task = json.loads(line)
            print(json.dumps({"seconds": alone(denoiser, task["requests"], task["clients"])}), flush=True)


if __name__ == "__main__":
    serve_until_told()
