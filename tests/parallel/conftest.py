"""TPU slices that are not there: libtpu compiles for a named topology on any machine."""

import functools
import os

import pytest


@pytest.fixture(scope="session")
def tpu_slice():
    """``tpu_slice("v5e:2x4", slices=1)``: the devices of a topology, for meshes and for compiling, not for running."""
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'bert_jax[tpu]'")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # do not ask the cloud which machine this is
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nobody computes with it, so several processes may have it at a time
    from jax.experimental import topologies

    @functools.cache
    def devices(name: str, slices: int = 1) -> list:
        options = {} if slices == 1 else {"num_slices": slices}
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)

    return devices
