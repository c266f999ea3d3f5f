"""The page for everybody: names for screen readers, contrast, narrow screens, the reader's own colours and motion."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "rollout" / "page"
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = rgba(getComputedStyle(e).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255, 255];
};
const weak = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode, element = text.parentElement;
  if (!text.textContent.trim() || !element.checkVisibility()) continue;
  if (element.closest('template, script, :disabled, .visually-hidden, .skip')) continue;
  const style = getComputedStyle(element);
  const front = rgba(element.closest('svg') ? style.fill : style.color);
  const [a, b] = [luminance(front), luminance(behind(element))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) weak.push(`${ratio.toFixed(2)} ${element.className} ${text.textContent.trim().slice(0, 30)}`);
}
return weak;
"""


@pytest.fixture
def answered(page):
    """The page with two answers on it."""

    def run(**settings):
        page.open(**settings)
        page.choose("rival", "threshold")
        return page.run()

    return run


@pytest.mark.parametrize("colour", ["step", "probability"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_has_the_contrast_of_wcag_aa(answered, dark, colour):
    page = answered(dark=dark)
    page.script("document.querySelector(`input[name=colour][value=${arguments[0]}]`).click()", colour)
    page.find("more").find_element("tag name", "summary").click()
    assert page.script(CONTRAST) == []


def test_every_control_has_a_name_for_screen_readers(answered):
    page = answered()
    page.find("more").find_element("tag name", "summary").click()
    nodes = page.command("Accessibility.getFullAXTree", {})["nodes"]
    controls = {"button", "textbox", "combobox", "slider", "spinbutton", "radio", "image", "region", "form"}
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in controls
        and not node.get("name", {}).get("value", "").strip()
    ]
    assert nameless == []


def test_headings_landmarks_and_live_region_are_there(answered):
    page = answered()
    assert [heading.text for heading in page.all("h1, h2")][1:] == ["confidence", "threshold"]
    assert len(page.all("main")) == 1
    assert page.find("announcer").get_attribute("aria-live") == "polite"
    assert page.find("error").get_attribute("role") == "alert"
    assert page.all("html")[0].get_attribute("lang") == "en"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_screens_need_no_sideways_scrolling(answered, width):
    page = answered(width=width, height=800)
    assert page.script("return document.documentElement.scrollWidth") <= width
    page.find("more").find_element("tag name", "summary").click()
    page.mode("infill")
    assert page.script("return document.documentElement.scrollWidth") <= width
    tops = [lane.rect["y"] for lane in page.all(".lane")]
    assert tops == sorted(set(tops)) or width == 768, "lanes stand below each other"


def test_reader_who_wants_no_motion_gets_the_answer_at_once(page):
    page.open(still=True).run()
    assert page.stats()["forwards"] == "17"
    moving = page.script("return document.getAnimations().length")
    assert moving == 0


def test_colours_follow_the_system_until_the_reader_chooses(page):
    def paper():
        return page.script("return getComputedStyle(document.body).backgroundColor")

    page.open(dark=False)
    light = paper()
    page.open(dark=True)
    dark = paper()
    assert light != dark
    page.find("theme").click()
    assert paper() == light
    page.open(dark=True)
    assert paper() == light, "the choice is kept"
    page.find("theme").click()
    assert paper() == dark
    page.find("theme").click()
    assert page.find("theme").text == "Auto"


def test_everything_comes_from_the_server_itself(page):
    page.open().run()
    origins = page.script(
        "return [...new Set(performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin))]"
    )
    assert origins == [page.url]
    addresses = [
        found
        for file in FOLDER.rglob("*")
        if file.suffix in (".html", ".css", ".js")
        for found in re.findall(r"https?://[^\s\"')]+", file.read_text(encoding="utf-8"))
    ]
    assert addresses == ["http://www.w3.org/2000/svg"], "the name of SVG is the one address in the files"


def test_page_runs_under_a_policy_without_inline_code(page):
    page.open().run()
    assert page.complaints() == []
    policy = page.browser.execute_async_script(
        "const done = arguments[0]; fetch('/').then((r) => done(r.headers.get('content-security-policy')))"
    )
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy

    class Inline(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attributes):
            names = dict(attributes)
            self.found += [name for name in names if name.startswith("on") or name == "style"]
            if tag == "style" or (tag == "script" and "src" not in names):
                self.found.append(tag)

    parser = Inline()
    parser.feed((FOLDER / "index.html").read_text(encoding="utf-8"))
    assert parser.found == []
    scripts = "".join(file.read_text(encoding="utf-8") for file in FOLDER.rglob("*.js"))
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", scripts)
