"""Small real denoisers: one of each family from the committed parity fixtures."""

from pathlib import Path

import pytest

import models

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
FAMILIES = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))


@pytest.fixture(params=FAMILIES)
def denoiser(request):
    """One denoiser of each family."""
    return models.load(FIXTURES / request.param)


@pytest.fixture
def folder_of():
    """Folder of a family's fixture."""
    return lambda family: FIXTURES / family


@pytest.fixture
def load_family():
    """Denoiser of a named family."""
    return lambda family, **options: models.load(FIXTURES / family, **options)
