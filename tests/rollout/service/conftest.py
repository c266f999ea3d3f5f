"""The service on the built-in model in this process, behind real HTTP on a free port."""

import json

import pytest
import requests

from rollout.service.config import EngineConfig
from rollout.service.local import local_app, running


class Client:
    """A few words for requests to one address."""

    def __init__(self, address: str, headers: dict | None = None) -> None:
        self.address, self.headers = address, headers or {}

    def get(self, path: str, **options) -> requests.Response:
        return requests.get(self.address + path, timeout=60, headers=self.headers, **options)

    def post(self, path: str, body=None, **options) -> requests.Response:
        options = {"json": body} | options if body is not None else options
        return requests.post(self.address + path, timeout=120, headers=self.headers, **options)

    def events(self, path: str, body: dict) -> list[tuple[str, object]]:
        """(event name, data) of a whole stream."""
        found = []
        with self.post(path, body | {"stream": True}, stream=True) as response:
            assert response.status_code == 200, response.text
            name = "message"
            for line in response.iter_lines(decode_unicode=True):
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = line.removeprefix("data: ")
                    found.append((name, data if data == "[DONE]" else json.loads(data)))
                    name = "message"
        return found


@pytest.fixture(scope="session")
def service():
    """(client, host) of a service on the built-in model."""
    app, host = local_app({"tiny": "tiny"}, engine=EngineConfig(max_batch_rows=32))
    with running(app) as address:
        yield Client(address), host


@pytest.fixture(scope="session")
def client(service):
    return service[0]
