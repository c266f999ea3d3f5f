"""A browser on the page of the real service; skipped where there is no Chromium."""

import json
import urllib.request

import pytest

from tests.page.driver import CHROMEDRIVER, CHROMIUM, DEADLINE_S, Page, open_browser


def pytest_addoption(parser):
    parser.addoption(
        "--readme-picture", action="store_true", help="write the README's picture of the page into docs/images"
    )


@pytest.fixture
def client(tiny_service):
    """Posts JSON without a page."""

    def post(path, body):
        data = json.dumps(body).encode()
        request = urllib.request.Request(tiny_service + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
            return json.load(response)

    return post


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium, chromium-driver)")
    opened = open_browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.quit()


@pytest.fixture(scope="session")
def shared_page(browser, tiny_service):
    return Page(browser, tiny_service)


@pytest.fixture
def page(shared_page):
    """The page, with nothing kept from the test before."""
    shared_page.complaints()
    yield shared_page
    shared_page.script("localStorage.clear()")
