"""Tests with the real moshi and torch, in .venv-engine (`make engine`); elsewhere they are passed over."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

collect_ignore_glob = (
    [] if importlib.util.find_spec("moshi") and importlib.util.find_spec("torch") else ["test_*.py"]
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of models with the tiny one in it, laid out for serving as the role does it."""
    from roles.moshi.files import serve_weights, tiny_weights

    models = tmp_path_factory.mktemp("models")
    assert tiny_weights.main(models / "tiny")
    assert serve_weights.lay_out(models, models / "tiny/record.json", {})
    return models
