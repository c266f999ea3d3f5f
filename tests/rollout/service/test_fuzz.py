"""Whatever a client sends, the answer is a documented one: no 5xx but a retryable one, no hang, an empty engine.

Right bodies are bent: fields of other types, beyond their bounds,
missing, unknown, and bytes that are no JSON.
"""

import json
import random
import string

import pytest
import requests

ENDPOINTS = ("/v1/completions", "/v1/chat/completions", "/v1/rollouts", "/v1/infill")
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    1e308,
    -1e308,
    1e-320,
    2**31,
    2**63,
    2**64,
    10**400,
    "",
    "a",
    "1+1=",
    "\x00",
    "\ud800",
    "\u00e9",
    "x" * 5000,
    [],
    [1],
    [[1]],
    [0, 1, 2],
    ["a", 1],
    {},
    {"a": 1},
    [[]],
    "NaN",
    "\U0001f600",
    {"text": "a"},
    {"hole": 2},
    {"role": "user", "content": "1"},
    "confidence",
    {"name": "eb", "options": {"gamma": "x"}},
    "stream",
]
GOOD = {
    "/v1/completions": {"prompt": "1+1=", "max_tokens": 4},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "1+1="}], "max_tokens": 4},
    "/v1/rollouts": {"prompt": "1+1=", "max_new_tokens": 4},
    "/v1/infill": {"segments": [{"text": "1+"}, {"hole": 2}, {"text": "=2"}]},
}
OPTIONS = {
    "n": [1, 2, 65],
    "num_samples": [1, 3, 65],
    "temperature": [0, 0.5, 100, 101],
    "top_p": [1, 0.1, 0, 1e-9],
    "top_k": [0, 1, 1000],
    "seed": [0, 2**53 - 1, 2**53],
    "sampler": ["ar", "random", "imh", "imh_sequence", "attn", "max_s", "eb", "credit", "nothing"],
    "block_length": [1, 3, 1 << 20],
    "steps": [1, 2, 1 << 20],
    "cache": ["none", "dual", "prefix", "block"],
    "stream": [True, False],
    "stop": ["2", ["2", "="], [], ""],
    "echo": [True],
    "logprobs": [True, 0, 1, 5],
    "model": ["tiny", "none", ""],
    "stream_options": [{"include_usage": True, "include_steps": True}],
    "max_tokens": [1, 3, 2000],
    "task": [{"name": "x"}],
}


def bent(draw: random.Random) -> tuple[str, bytes]:
    """An endpoint and a body that is nearly right."""
    path = draw.choice(ENDPOINTS)
    body = dict(GOOD[path])
    for name in draw.sample(sorted(OPTIONS), draw.randint(0, 3)):
        body[name] = draw.choice(OPTIONS[name])
    for _ in range(draw.choice([0, 0, 1, 1, 2])):
        name = draw.choice([*body, *OPTIONS, "unknown", "".join(draw.choices(string.printable, k=3))])
        body[name] = draw.choice(ODD)
    if draw.random() < 0.1:
        del body[draw.choice(list(body))]
    return path, json.dumps(body).encode()


def broken(draw: random.Random) -> bytes:
    """A body that is no JSON object."""
    whole = json.dumps(GOOD[draw.choice(ENDPOINTS)]).encode()
    kind = draw.randrange(6)
    if kind == 0:
        return whole[: draw.randrange(len(whole))]
    if kind == 1:
        return bytes(draw.randrange(256) for _ in range(draw.randint(0, 200)))
    if kind == 2:
        return b"[" * draw.choice([1, 100, 20000])
    if kind == 3:
        return json.dumps(draw.choice(ODD)).encode()
    if kind == 4:
        return whole.replace(
            b'"1+1="', draw.choice([b"NaN", b"Infinity", b"-", b"'a'", b'"\\ud800"', b'"\xff"', b"1" * 5000])
        )
    return whole.decode().encode(draw.choice(["utf-16", "utf-32", "utf-8-sig"]))


def check(response: requests.Response) -> None:
    assert response.status_code < 500 or (response.status_code == 503 and "Retry-After" in response.headers), (
        response.text
    )
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert "site-packages" not in response.text


def is_idle(host) -> bool:
    return all(served.loop.num_owned == 0 and not served.loop.engine.is_busy for served in host._served.values())


def storm(client, number: int, seed: int) -> set[int]:
    draw, seen = random.Random(seed), set()
    with requests.Session() as session:
        for _ in range(number):
            path, body = bent(draw)
            headers = {"Content-Type": "application/json"}
            response = session.post(client.address + path, data=body, headers=headers, timeout=120)
            check(response)
            seen.add(response.status_code)
    return seen


def test_bodies_that_are_nearly_right_are_answered_or_refused_in_form(service) -> None:
    client, host = service
    assert {200, 400} <= storm(client, 150, seed=1)
    assert is_idle(host)


def test_two_hundred_malformed_bodies_are_refused(service) -> None:
    client, host = service
    draw = random.Random(2)
    for number in range(200):
        kind = draw.choice(["application/json", "application/json", "text/plain", "multipart/form-data", None])
        headers = {} if kind is None else {"Content-Type": kind}
        response = requests.post(
            client.address + draw.choice(ENDPOINTS), data=broken(draw), headers=headers, timeout=120
        )
        check(response)
        assert response.status_code in (400, 413, 422) or response.status_code == 200, (number, response.text)
    assert is_idle(host)
    assert client.post("/v1/completions", GOOD["/v1/completions"]).status_code == 200


@pytest.mark.slow
def test_two_thousand_bodies(service) -> None:
    client, host = service
    for seed in range(10, 14):
        storm(client, 500, seed)
    assert is_idle(host)
