"""The answer to a request over HTTP depends on its own fields alone: the same by itself and among 64 others."""

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rollout.service.local import local_app, running
from tests.rollout.service.conftest import Client

LOGPROB_TOLERANCE = 1e-4
"""What batches of another shape may change of a log-probability (docs/serving.md)."""
NUM_OTHERS = 64
SAMPLERS = ["confidence", "entropy", "margin", "random", "ar", "eb", "factor", "egi", "credit", "lcr", "attn"]


def asked_for(seed: int) -> tuple[str, dict]:
    """(path, body) of a request whose every field is drawn anew."""
    draw = random.Random(seed)
    body = {
        "seed": seed,
        "sampler": draw.choice(SAMPLERS),
        "temperature": draw.choice([0.0, 0.5, 1.0, 1.5]),
        "top_p": draw.choice([1.0, 1.0, 0.9]),
        "top_k": draw.choice([0, 0, 5]),
        "block_length": draw.choice([None, None, 4, 8]),
        "num_samples": draw.choice([1, 1, 2]),
    }
    text = f"{draw.randrange(1000)}+{draw.randrange(100)}="
    if seed % 5 == 0:
        return "/v1/infill", body | {"prefix": text, "suffix": "1", "max_new_tokens": draw.randint(2, 10)}
    return "/v1/rollouts", body | {"prompt": text, "max_new_tokens": draw.randint(4, 24)}


def answer(client: Client, asked: tuple[str, dict]) -> list[dict]:
    response = client.post(*asked)
    assert response.status_code == 200, response.text
    body = response.json()
    return body["rollouts"] if "rollouts" in body else body["infills"]


@pytest.fixture
def service():
    """(client, engine) of a service with room for all."""
    app, host = local_app({"tiny": "tiny"})
    with running(app) as address:
        yield Client(address), asyncio.run(host.served("tiny")).loop.engine


def test_an_answer_is_the_same_alone_and_among_64_others(service) -> None:
    client, engine = service
    subjects = [asked_for(seed) for seed in range(10)]
    alone = [answer(client, subject) for subject in subjects]
    requests = [(None, asked_for(seed)) for seed in range(100, 100 + NUM_OTHERS)] + [*enumerate(subjects)]
    random.Random(1).shuffle(requests)
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [(number, pool.submit(answer, client, asked)) for number, asked in requests]
        most = 0
        while not all(future.done() for _, future in futures):
            most = max(most, engine.num_active)
            time.sleep(0.002)
    assert most > NUM_OTHERS // 2
    for number, future in futures:
        got = future.result()
        if number is None:
            continue
        for one, other in zip(got, alone[number], strict=True):
            assert one["logprobs"] == pytest.approx(other["logprobs"], abs=LOGPROB_TOLERANCE)
            assert one["entropies"] == pytest.approx(other["entropies"], abs=LOGPROB_TOLERANCE)
            inexact = ("logprobs", "entropies")
            assert [v for k, v in one.items() if k not in inexact] == [v for k, v in other.items() if k not in inexact]
