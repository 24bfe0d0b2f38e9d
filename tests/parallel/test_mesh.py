"""Meshes that fit and that do not, and where every parameter lies: the table of shardings is a contract."""

import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig, preset
from bert_jax.parallel.mesh import AXES, MeshConfig, batch_sharding, batch_shards, make_mesh, parameter_shardings

SNAPSHOTS = pathlib.Path(__file__).parent / "snapshots"
CONFIGS = {"bert-tiny": preset("bert-tiny", vocab_multiple=128), "albert-base-v2": preset("albert-base-v2")}


def shardings(config: EncoderConfig, mesh):
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    return parameter_shardings(api.logical_axes(config), shapes, mesh)


def describe(config: EncoderConfig) -> str:
    """One line per parameter: its path and the mesh axis of each of its dimensions."""
    lines = []
    for path, sharding in jax.tree.leaves_with_path(shardings(config, make_mesh(MeshConfig(2, 2, 2)))):
        spec = " ".join("-" if axis is None else axis for axis in sharding.spec)
        lines.append(f"{jax.tree_util.keystr(path, simple=True, separator='/'):34} {spec}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", CONFIGS)
def test_shardings_are_as_committed(name):
    assert describe(CONFIGS[name]) == (SNAPSHOTS / f"{name}.txt").read_text(), (
        "shardings changed. If that is meant, run `PYTHONPATH=. XLA_FLAGS=--xla_force_host_platform_device_count=8 python "
        "tests/parallel/test_mesh.py` and commit the snapshots"
    )


@pytest.mark.parametrize(("asked", "found"), [
    ((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 1, -1), (1, 1, 8)), ((8, -1, 1), (8, 1, 1)), ((2, 4, 1), (2, 4, 1)),
])
def test_sizes(asked, found):
    mesh = make_mesh(MeshConfig(*asked))
    assert tuple(mesh.shape.values()) == found and mesh.axis_names == AXES
    assert batch_shards(mesh) == found[0] * found[1]


@pytest.mark.parametrize("asked", [(3, 1, 1), (-1, 3, 1), (1, 1, 1), (4, 4, 1), (16, 1, 1), (-1, 16, 1)])
def test_mesh_that_does_not_fit(asked):
    with pytest.raises(BertJaxError, match="does not fit 8 device.*mesh.data=-1") as error:
        make_mesh(MeshConfig(*asked))
    assert "\n" not in str(error.value) and f"fsdp={asked[1]}" in str(error.value)


@pytest.mark.parametrize("asked", [(-1, -1, 1), (0, 1, 8), (-2, 1, 1)])
def test_sizes_that_mean_nothing(asked):
    with pytest.raises(BertJaxError, match="sizes are positive, and at most one is -1"):
        make_mesh(MeshConfig(*asked))


@pytest.mark.parametrize(("mesh", "changes", "message"), [
    ((1, 1, 8), {"vocab_size": 90}, "embeddings/token: axis 'vocab' of 90 is not a multiple of mesh.tensor=8; "
                                    "set encoder.vocab_multiple"),
    ((1, 1, 8), {"heads": 4}, "axis 'heads' of 4 is not a multiple of mesh.tensor=8"),
    ((1, 1, 8), {"ffn_width": 36}, "axis 'ffn' of 36 is not a multiple of mesh.tensor=8"),
    ((1, 8, 1), {"embedding_width": 12}, "axis 'embedding' of 12 is not a multiple of mesh.fsdp=8"),
    ((1, 8, 1), {"hidden_width": 36, "heads": 4}, "axis 'model' of 36 is not a multiple of mesh.fsdp=8"),
])
def test_dimension_that_does_not_divide(mesh, changes, message):
    settings = dict(vocab_size=96, embedding_width=32, hidden_width=32, heads=8, ffn_width=64, layers=2, max_length=16)
    with pytest.raises(BertJaxError) as error:
        shardings(EncoderConfig(**(settings | changes)), make_mesh(MeshConfig(*mesh)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_rows_are_split_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    rows = jax.device_put(np.arange(24).reshape(8, 3), batch_sharding(mesh))
    assert rows.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
    assert len({int(shard.data[0, 0]) for shard in rows.addressable_shards}) == 4


if __name__ == "__main__":
    for snapshot, config in CONFIGS.items():
        (SNAPSHOTS / f"{snapshot}.txt").write_text(describe(config))
        print("wrote", SNAPSHOTS / f"{snapshot}.txt")
