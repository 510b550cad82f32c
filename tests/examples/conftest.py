"""A tiny trained model, and no traces in the home directory."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep transformers from copying model code into the home directory, here and in what is started."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def trained(recipe_file: Path, reference: Callable[..., Path]) -> Path:
    """A finished run; only to be read."""
    return reference(recipe_file)
