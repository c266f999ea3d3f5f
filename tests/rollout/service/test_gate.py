"""What a server lets in: key, address, size, patience, room; and what is left when clients go away."""

import json
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from rollout.service.config import EngineConfig, Limits, ServiceConfig
from rollout.service.keys import read_key
from rollout.service.local import local_app, running
from tests.rollout.service.conftest import Client

KEY = "a-key-of-the-tests-1234"
SHORT = {"prompt": "1+1=", "max_tokens": 4, "seed": 1}
# A hole is filled to its end, one character a step: 400 steps.
LONG = {"prefix": "1+1=", "max_new_tokens": 400, "sampler": "ar", "seed": 1}
# More than the engine takes at once: minutes, unless called off.
MANY = {"num_samples": 64}


@pytest.fixture(scope="module")
def strict():
    """(client, host) of a service with a key and narrow limits."""
    limits = Limits(max_body_bytes=2000, body_timeout_s=1.0, max_concurrent=3, max_prompt_chars=100)
    app, host = local_app(
        {"tiny": "tiny"}, engine=EngineConfig(max_batch_rows=4), service=ServiceConfig(limits=limits), api_key=KEY
    )
    with running(app) as address:
        yield Client(address, {"Authorization": f"Bearer {KEY}"}), host


def until(condition, timeout_s: float = 60.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def raw(client: Client) -> socket.socket:
    host, port = client.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def head(path: str, length: int, *extra: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {KEY}", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "Content-Type: application/json", *extra, "", ""]).encode()


def is_idle(host) -> bool:
    return all(served.loop.num_owned == 0 and not served.loop.engine.is_busy for served in host._served.values())


def test_without_the_key_nothing_is_answered_but_the_page_and_the_health_check(strict) -> None:
    client, _ = strict
    for given in (None, "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"):
        stranger = Client(client.address, {} if given is None else {"Authorization": given})
        for response in (stranger.get("/v1/models"), stranger.get("/metrics"), stranger.post("/v1/completions", SHORT)):
            assert response.status_code == 401
            assert KEY not in response.text
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert stranger.get("/healthz").status_code == 200
    assert client.get("/v1/models").status_code == 200


def test_without_a_key_only_this_machine_is_answered_under_its_own_names(client) -> None:
    # A web page that has its name resolved to 127.0.0.1 still sends its own name as the host.
    for name, status in (("evil.example", 403), ("localhost", 200), ("127.0.0.1:80", 200), ("[::1]:80", 200)):
        assert Client(client.address, {"Host": name}).get("/v1/models").status_code == status


def test_a_body_that_is_too_long_is_refused_whether_it_says_so_or_not(strict) -> None:
    client, _ = strict
    body = SHORT | {"user": "x" * 3000}
    assert client.post("/v1/completions", body).status_code == 413
    chunks = (b"x" * 500 for _ in range(10))
    response = client.post("/v1/completions", data=chunks)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_a_body_that_never_comes_costs_its_connection_only(strict) -> None:
    client, host = strict
    with raw(client) as slow:
        slow.sendall(head("/v1/completions", 100) + b"{")
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
    assert client.post("/v1/completions", SHORT).status_code == 200
    assert until(lambda: is_idle(host))


def test_a_request_beyond_the_room_is_told_when_to_come_again(strict) -> None:
    client, host = strict
    with ExitStack() as stack:
        for _ in range(3):
            # The head of the answer says that the request has been accepted; its steps may come much later.
            stack.enter_context(client.post("/v1/infill", LONG | MANY | {"stream": True}, stream=True))
        response = client.post("/v1/completions", SHORT)
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) >= 1
        # What costs nothing is still answered.
        assert client.get("/healthz").status_code == 200
    assert until(lambda: is_idle(host))
    assert until(lambda: client.post("/v1/completions", SHORT).status_code == 200)


def test_a_client_that_goes_away_leaves_an_empty_engine(strict) -> None:
    client, host = strict
    for stream in (True, False):
        with raw(client) as gone:
            body = json.dumps(LONG | {"stream": stream}).encode()
            gone.sendall(head("/v1/infill", len(body)) + body)
            assert until(lambda: not is_idle(host))
        steps = host._served["tiny"].loop.state().steps
        assert until(lambda: is_idle(host))
        # 400 steps would have been needed; it left long before.
        assert host._served["tiny"].loop.state().steps < steps + 300


def test_a_storm_of_clients_that_go_away_leaves_the_server_serving(strict) -> None:
    client, host = strict
    body = b'{"prompt": "1+1=", "max_new_tokens": 200, "temperature": 50, "stream": true}'

    def storm(number: int) -> None:
        for cut in range(6):
            with raw(client) as gone:
                whole = head("/v1/rollouts", len(body)) + body
                gone.sendall(whole if cut % 2 else whole[: len(whole) * (number + 1) // 10])
                if cut == 3:
                    gone.recv(100)

    threads = [threading.Thread(target=storm, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert until(lambda: is_idle(host))
    assert until(lambda: client.post("/v1/completions", SHORT).status_code == 200)


def test_a_request_that_takes_too_long_is_ended_and_may_be_sent_again() -> None:
    limits = Limits(request_timeout_s=0.2)
    app, host = local_app({"tiny": "tiny"}, service=ServiceConfig(limits=limits))
    with running(app) as address:
        response = Client(address).post("/v1/infill", LONG)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "timeout"
        assert response.headers["Retry-After"]
        name, error = Client(address).events("/v1/infill", LONG)[-1]
        assert (name, error["error"]["code"]) == ("error", "timeout")
        assert until(lambda: is_idle(host))


def test_a_full_queue_refuses_with_503() -> None:
    app, host = local_app({"tiny": "tiny"}, engine=EngineConfig(max_batch_rows=1, max_waiting=2))
    with running(app) as address:
        client = Client(address)
        with client.post("/v1/infill", LONG | MANY | {"stream": True}, stream=True):
            response = client.post("/v1/infill", LONG)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_overloaded"
        assert until(lambda: is_idle(host))


def test_a_failure_inside_tells_neither_path_nor_trace(client, service, monkeypatch) -> None:
    _, host = service

    def broken(*_, **__):
        raise RuntimeError("secret at /home/someone/key")

    monkeypatch.setattr(host._served["tiny"].loop.engine, "step", broken)
    response = client.post("/v1/completions", SHORT)
    assert response.status_code == 503
    assert "secret" not in response.text
    assert "/home" not in response.text
    monkeypatch.undo()
    monkeypatch.setattr(host, "models", broken)
    response = client.get("/v1/models")
    assert response.status_code == 500
    assert "secret" not in response.text
    monkeypatch.undo()
    assert client.post("/v1/completions", SHORT).status_code == 200


def test_browsers_of_other_origins_are_kept_out_unless_named(client) -> None:
    asks = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in Client(client.address, asks).get("/v1/models").headers
    app, _ = local_app({"tiny": "tiny"}, service=ServiceConfig(cors_origins=("https://mine.example",)))
    with running(app) as address:
        for origin, allowed in (("https://mine.example", True), ("https://other.example", False)):
            headers = Client(address, {"Origin": origin}).get("/v1/models").headers
            assert ("access-control-allow-origin" in headers) is allowed


def test_keys_come_from_the_environment_or_a_file_and_are_long(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert read_key("KEY_OF_TEST", None) == KEY == read_key(None, tmp_path / "key")
    assert read_key(None, None) is None
    for bad in ("", "short", "with blanks in it 12345", "\u00fcmlaut-\u00fcmlaut-\u00fcmlaut"):
        monkeypatch.setenv("KEY_OF_TEST", bad)
        with pytest.raises(ValueError, match=r"KEY_OF_TEST holds .* at least 16"):
            read_key("KEY_OF_TEST", None)
