"""TPU slices that are not there: libtpu compiles for a named topology on any machine."""

import functools

import pytest


@pytest.fixture(scope="session")
def tpu_slice():
    """``tpu_slice("v5e:2x4", slices=1)``: the devices of a topology, for meshes and for compiling, not for running."""
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'bert_jax[tpu]'")
    from bert_jax.planning.chips import target

    return functools.cache(lambda name, slices=1: list(target(name if slices == 1 else f"{name}*{slices}").devices))
