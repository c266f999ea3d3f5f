"""The page in headless Chromium, as a person uses it."""

import base64
import shutil
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
DEADLINE_S = 90
"""For whatever a test waits for; generous, because other work may share the machine."""


def open_browser(profile):
    """A browser with an empty profile in the folder `profile`."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    browser.set_script_timeout(DEADLINE_S)
    return browser


class Page:
    """What the tests do on the page, and what they read from it."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url

    def open(self, *, width=1280, height=900, dark=False, still=True):
        """Load the page; `still`: the person wants no movement, so that an answer is shown as soon as it is there."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 500},
        )
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        features["prefers-reduced-motion"] = "reduce" if still else "no-preference"
        listed = [{"name": name, "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", {"features": listed})
        self.browser.get(self.url)
        self.until(lambda: len(Select(self.find("sampler")).options) > 1 or self.find("error").is_displayed())
        return self

    def command(self, name, arguments):
        """A command of Chromium's own protocol."""
        return self.browser.execute_cdp_cmd(name, arguments)

    def find(self, identity):
        return self.browser.find_element(By.ID, identity)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def script(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def module(self, name, expression):
        """Value of an expression over a module of the page, `m`."""
        code = f"const done = arguments[0]; import('/page/js/{name}.js')"
        code += f".then((m) => done({expression})).catch((error) => done(`${{error}}`))"
        return self.browser.execute_async_script(code)

    def until(self, condition):
        """The first true value of a condition."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.02)
        raise AssertionError(f"not within {DEADLINE_S} s; the page says {self.announced!r}, {self.error!r}")

    def choose(self, identity, value):
        Select(self.find(identity)).select_by_value(value)

    def example(self, name):
        next(button for button in self.all("#examples button") if button.text == name).click()

    def mode(self, name):
        self.script("document.querySelector(`input[name=mode][value=${arguments[0]}]`).click()", name)

    def write(self, identity, text):
        """Replace the text of a field, as by typing."""
        field = self.find(identity)
        field.send_keys(Keys.CONTROL + "a")
        field.send_keys(Keys.DELETE)
        field.send_keys(text)

    def run(self):
        """Denoise, and wait for the end."""
        self.find("run").click()
        return self.until_done()

    def until_done(self):
        self.until(lambda: self.announced.startswith("Done.") or self.error)
        self.until(lambda: self.find("play").get_attribute("data-playing") == "false")
        return self

    def seek(self, forward):
        self.script("const t = arguments[0]; t.value = arguments[1]; t.dispatchEvent(new Event('input'))",
                    self.find("time"), forward)  # fmt: skip

    @property
    def announced(self):
        """What a screen reader hears last."""
        return self.find("announcer").get_attribute("textContent")

    @property
    def error(self):
        shown = [element.text for element in self.all(".error, .field-error") if element.is_displayed()]
        return "\n".join(shown)

    def tiles(self, lane=0):
        """Text of each slot, empty where it is masked."""
        return self.script(
            "return [...document.querySelectorAll('.lane')[arguments[0]].querySelectorAll('.tile')]"
            ".map((tile) => tile.textContent)", lane,
        )  # fmt: skip

    def stats(self, lane=0):
        """Numbers of a lane by their names."""
        return self.script(
            "return Object.fromEntries([...document.querySelectorAll('.lane')[arguments[0]]"
            ".querySelectorAll('.lane-stats div')].map((d) => [d.children[0].textContent, d.children[1].textContent]))",
            lane,
        )  # fmt: skip

    def picture(self, path, *, whole=True):
        """Screenshot of the page (`whole`) or of what is in view."""
        self.script("scrollTo(0, 0); document.activeElement.blur()")
        size = self.command("Page.getLayoutMetrics", {})["cssContentSize" if whole else "cssLayoutViewport"]
        width, height = size.get("width", size.get("clientWidth")), size.get("height", size.get("clientHeight"))
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.command("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self):
        """Errors and warnings of the browser's console since the last call."""
        return [
            entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
        ]
