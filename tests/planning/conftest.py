"""The TPU compiler, where it is installed."""

import importlib.util
import os

import pytest


@pytest.fixture(scope="session")
def libtpu():
    """Skips where libtpu is not installed; several test processes may load it at once, as nothing here uses a chip."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (pip install 'bert_jax[plan]')")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
