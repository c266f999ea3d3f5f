"""A server with a key: the page asks for it, uses it, and keeps it nowhere."""

import pytest

from tests.page.driver import Page

KEY = "a-key-for-this-test"


@pytest.fixture
def guarded(browser):
    from rollout.service.local import local_app, running

    app, _ = local_app({"tiny": "tiny"}, api_key=KEY)
    with running(app) as address:
        yield Page(browser, address)


def test_page_asks_for_the_key_and_keeps_it_in_memory_only(guarded):
    guarded.open()
    guarded.until(lambda: "needs its key" in guarded.error)
    assert guarded.find("key-box").get_attribute("open") is not None
    guarded.write("key", KEY)
    guarded.all("#key-form button")[0].click()
    guarded.until(lambda: guarded.all("#sampler option"))
    assert guarded.error == ""
    guarded.run()
    assert guarded.announced.startswith("Done.")
    kept = guarded.script("return JSON.stringify({...localStorage}) + JSON.stringify({...sessionStorage})")
    assert KEY not in kept + guarded.script("return document.cookie + location.href")
    guarded.open()
    guarded.until(lambda: "needs its key" in guarded.error)
