"""Screenshots of the page: kept under build/screenshots for whoever wants to look, not in the repository.

The README's picture is written by `pytest tests/page/test_pictures.py --readme-picture` and by nothing else.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "screenshots"
VIEWS = {
    "light": {"width": 1280, "height": 900},
    "dark": {"width": 1280, "height": 900, "dark": True},
    "narrow": {"width": 390, "height": 844},
}


def compared(page, **view):
    """Two samplers on a puzzle, half-way through."""
    page.open(**view)
    page.choose("rival", "threshold")
    page.run()
    page.seek(9)
    return page


@pytest.mark.parametrize("name", VIEWS)
def test_comparison_half_way(page, name):
    compared(page, **VIEWS[name]).picture(SHOTS / f"{name}.png")
    assert (SHOTS / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page.complaints() == []


def test_probabilities_infill_and_an_error(page):
    page.open().example("Countdown")
    page.run()
    page.script("document.querySelector('input[value=probability]').click()")
    page.picture(SHOTS / "probability.png")
    page.mode("infill")
    page.run().picture(SHOTS / "infill.png")
    page.write("infill", "no hole")
    page.find("run").click()
    page.picture(SHOTS / "error.png")
    assert len(list(SHOTS.glob("*.png"))) >= 3


def test_picture_of_the_readme(page, request):
    if not request.config.getoption("--readme-picture", default=False):
        pytest.skip("only with --readme-picture, because it writes into docs/images")
    compared(page, **VIEWS["light"]).picture(ROOT / "docs" / "images" / "page.png")
