"""Names of devices to plan for: what they mean, and what is refused."""

import os

import jax
import pytest

from bert_jax.errors import BertJaxError
from bert_jax.planning.chips import TPUS, _without_cpu_flags, target

GIB = 2**30


def test_cpu_devices():
    found = target("cpu:8")
    assert len(found.devices) == 8 and found.platform == "cpu" and found.chip is None and found.limit is None
    assert target("cpu").devices == (jax.devices()[0],)
    with pytest.raises(BertJaxError, match="jax has started with 8 CPU"):
        target("cpu:9")


@pytest.mark.parametrize("name", ["v5e", "foo:2x2", "v9:2x2", "tpu", "cpu:x", "v5e:4x4*", "v5e-0", "v5e-3", "v4-4", ""])
def test_no_such_name_is_one_line(name):
    with pytest.raises(BertJaxError, match=f"--topology {name}".replace("*", r"\*")) as refused:
        target(name)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(any(d.platform == "gpu" for d in jax.devices()), reason="there is a GPU")
def test_no_gpu_is_one_line():
    with pytest.raises(BertJaxError, match="jax sees no GPU here: pip install"):
        target("gpu")


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("name", "devices", "limit", "slices"),
    [("v5e:4x4", 16, 15.75, 1), ("v5e-16", 16, 15.75, 1), ("v5litepod-8", 8, 15.75, 1), ("v6e:2x2*2", 8, 31.24, 2),
     ("v4-8", 4, 30.75, 1), ("v4-64", 32, 30.75, 1), ("v5p-8", 4, 95.73, 1), ("v3-8", 8, 15.48, 1), ("v2-8", 8, 7.48, 1)],
)
def test_slices(name, devices, limit, slices, libtpu):
    """As jax counts devices: the cores of v2 and v3, chips from v4 on; the memory is what XLA says."""
    found = target(name)
    assert len(found.devices) == devices and found.platform == "tpu"
    assert found.limit == pytest.approx(limit * GIB, rel=1e-3)
    assert len({getattr(device, "slice_index", None) for device in found.devices}) == slices
    assert found.chip in TPUS.values()


@pytest.mark.tpu_compile
@pytest.mark.parametrize(("name", "says"), [("v5p:4x4", "three dimensions"), ("v5e:99x99", "libtpu knows no such slice")])
def test_slices_that_do_not_exist(name, says, libtpu):
    with pytest.raises(BertJaxError, match=says):
        target(name)


def test_flags_for_processors_are_hidden_from_libtpu(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_of_tomorrow=1 --xla_dump_to=x")
    with _without_cpu_flags():
        assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_of_tomorrow=1 --xla_dump_to=x"
