"""Meshes that fit and that do not, and where every parameter lies: the table of shardings is a contract."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import PRESETS, EncoderConfig, preset
from bert_jax.parallel.mesh import (
    AXES,
    MeshConfig,
    arrange,
    batch_sharding,
    batch_shards,
    check_rows,
    make_mesh,
    parameter_shardings,
)

SNAPSHOTS = pathlib.Path(__file__).parent / "snapshots"
# All sizes of a family lie alike; padded, since two of BERT's vocabularies are odd.
FAMILIES = {
    family: [preset(name, vocab_multiple=2) for name in PRESETS if name.startswith(family)] for family in ("bert", "albert")
}


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


@pytest.mark.parametrize("family", FAMILIES)
def test_shardings_of_all_presets_are_as_committed(family):
    for config in FAMILIES[family]:
        assert describe(config) == (SNAPSHOTS / f"{family}.txt").read_text(), (
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


@pytest.mark.parametrize(("asked", "fitting"), [
    ((3, 1, 1), "mesh.data=8 mesh.fsdp=1 mesh.tensor=1"), ((-1, 3, 1), "mesh.data=2 mesh.fsdp=4 mesh.tensor=1"),
    ((1, 1, 1), "mesh.data=8 mesh.fsdp=1 mesh.tensor=1"), ((4, 4, 1), "mesh.data=2 mesh.fsdp=4 mesh.tensor=1"),
    ((16, 1, 1), "mesh.data=8 mesh.fsdp=1 mesh.tensor=1"), ((-1, 16, 1), "mesh.data=1 mesh.fsdp=8 mesh.tensor=1"),
])
def test_mesh_that_does_not_fit(asked, fitting):
    with pytest.raises(BertJaxError, match="does not fit 8 device") as error:
        make_mesh(MeshConfig(*asked))
    assert "\n" not in str(error.value) and f"data={asked[0]} x fsdp={asked[1]}" in str(error.value)
    assert str(error.value).endswith(f"{fitting} would do")


@pytest.mark.parametrize("asked", [(-1, -1, 1), (0, 1, 8), (-2, 1, 1)])
def test_sizes_that_mean_nothing(asked):
    with pytest.raises(BertJaxError, match="sizes are positive, and at most one is -1"):
        make_mesh(MeshConfig(*asked))


@pytest.mark.parametrize(("mesh", "changes", "problem", "advice"), [
    ((1, 1, 8), {"vocab_size": 90}, "vocab 90 (embeddings/token) is not a multiple of mesh.tensor=8",
     "task.encoder.vocab_multiple=1024"),
    ((1, 1, 8), {"heads": 4}, "heads 4 (attention/key/bias) is not a multiple of mesh.tensor=8",
     "mesh.data=1 mesh.fsdp=2 mesh.tensor=4"),
    ((2, 1, 4), {"ffn_width": 36, "heads": 2}, "heads 2 (attention/key/bias) is not a multiple of mesh.tensor=4",
     "mesh.data=2 mesh.fsdp=2 mesh.tensor=2"),
    ((1, 1, 8), {"ffn_width": 36}, "ffn 36 (feed_forward/intermediate/bias) is not a multiple of mesh.tensor=8",
     "mesh.data=1 mesh.fsdp=2 mesh.tensor=4"),
    ((1, 8, 1), {"embedding_width": 12}, "embedding 12 (embeddings/norm/bias) is not a multiple of mesh.fsdp=8",
     "mesh.data=2 mesh.fsdp=4 mesh.tensor=1"),
    ((1, 8, 1), {"hidden_width": 36, "heads": 4}, "model 36 (attention/key/kernel) is not a multiple of mesh.fsdp=8",
     "mesh.data=2 mesh.fsdp=4 mesh.tensor=1"),
    ((1, 1, 8), {"hidden_width": 33, "heads": 3, "vocab_size": 91},
     "heads 3 (attention/key/bias) is not a multiple of mesh.tensor=8, vocab 91 (embeddings/token) is not", "mesh.data=8"),
    ((1, 2, 4), {"vocab_size": 91, "heads": 2}, "vocab 91",
     "mesh.data=1 mesh.fsdp=4 mesh.tensor=2 with task.encoder.vocab_multiple=1024"),
])
def test_dimension_that_does_not_divide(mesh, changes, problem, advice):
    settings = dict(vocab_size=96, embedding_width=32, hidden_width=32, heads=8, ffn_width=64, layers=2, max_length=16)
    changed = EncoderConfig(**(settings | changes))
    with pytest.raises(BertJaxError) as error:
        shardings(changed, make_mesh(MeshConfig(*mesh)))
    assert problem in str(error.value) and f"{advice} " in str(error.value) and "\n" not in str(error.value)
    # the advice, taken literally, works
    words = str(error.value).rsplit(": ", 1)[1].removesuffix(" would do").replace(" with", "").split()
    taken = dict(word.rsplit(".", 1)[1].split("=") for word in words)
    multiple = int(taken.pop("vocab_multiple", 1))
    sizes = dataclasses.replace(MeshConfig(*mesh), **{axis: int(size) for axis, size in taken.items()})
    shardings(dataclasses.replace(changed, vocab_multiple=multiple), make_mesh(sizes))


@pytest.mark.parametrize(("rows", "mesh", "advice"), [
    (12, (8, 1, 1), "8 or 16 would do, or mesh.data=4 mesh.fsdp=1 mesh.tensor=2"),
    (4, (2, 4, 1), "8 would do, or mesh.data=2 mesh.fsdp=2 mesh.tensor=2"),
    (7, (2, 2, 2), "4 or 8 would do, or mesh.data=1 mesh.fsdp=1 mesh.tensor=8"),
])
def test_rows_that_do_not_divide(rows, mesh, advice):
    found = make_mesh(MeshConfig(*mesh))
    with pytest.raises(BertJaxError) as error:
        check_rows("train.batch_size", rows, found)
    assert str(error.value).startswith(f"train.batch_size is {rows}: it must be a multiple of {mesh[0] * mesh[1]}, mesh.data=")
    assert str(error.value).endswith(advice)
    check_rows("train.batch_size", 2 * batch_shards(found), found)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the layout of a mesh asks of a device."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "stand-in"


def chips(slices: int, each: int) -> list[Chip]:
    return [Chip(number, number % slices) for number in range(slices * each)]  # interleaved, as nobody promises otherwise


@pytest.mark.parametrize("sizes", [(2, 4, 1), (4, 1, 2), (8, 1, 1), (2, 2, 2)])
def test_only_data_crosses_slices(sizes):
    found = arrange(sizes, chips(2, 4))
    assert found.shape == sizes and len(set(found.ravel())) == 8
    members = np.vectorize(lambda chip: chip.slice_index)(found)
    assert {len(set(group.ravel())) for group in members} == {1}, "fsdp and tensor stay inside"
    assert list(members[:, 0, 0]) == sorted(members[:, 0, 0]) and set(members[:, 0, 0]) == {0, 1}


@pytest.mark.parametrize(("sizes", "slices", "crossing", "advice"), [
    ((1, 8, 1), 2, "mesh.fsdp=8 would", "mesh.data=2 mesh.fsdp=4 mesh.tensor=1 would do"),
    ((1, 2, 4), 2, "mesh.fsdp=2 and mesh.tensor=4 would", "mesh.data=2 mesh.fsdp=1 mesh.tensor=4 would do"),
    ((2, 1, 4), 4, "mesh.tensor=4 would", "mesh.data=4 mesh.fsdp=1 mesh.tensor=2 would do"),
])
def test_axis_that_would_cross_slices(sizes, slices, crossing, advice):
    with pytest.raises(BertJaxError) as error:
        arrange(sizes, chips(slices, 8 // slices))
    message = str(error.value)
    assert message.startswith(crossing) and message.endswith(advice) and f"between {slices} slices" in message


def test_slices_of_different_sizes():
    with pytest.raises(BertJaxError, match=r"different numbers of devices \(4, 3\)"):
        arrange((7, 1, 1), [*chips(2, 4)][:7])


@pytest.mark.tpu_compile
def test_meshes_of_tpu_slices(tpu_slice):
    """What jax.make_mesh refuses (two slices; v6e and v5p where a mesh axis takes a part of a chip axis) is laid out."""
    for name, slices, sizes in (("v5e:4x4", 2, (4, 8, 1)), ("v5e:4x4", 2, (2, 4, 4)), ("v6e:4x4", 1, (8, 2, 1)),
                                ("v5p:4x4x4", 1, (2, 32, 1)), ("v5e:16x16", 1, (32, 8, 1))):
        devices = tpu_slice(name, slices)
        mesh = make_mesh(MeshConfig(*sizes), devices)
        assert tuple(mesh.shape.values()) == sizes and set(mesh.devices.flat) == set(devices)
        halves = np.array_split(mesh.devices, slices)
        assert [{getattr(device, "slice_index", 0) for device in half.flat} for half in halves] == [{i} for i in range(slices)]
    with pytest.raises(BertJaxError, match="mesh.fsdp=32 would have to cross the slow network between 2 slices of 16"):
        make_mesh(MeshConfig(1, 32, 1), tpu_slice("v5e:4x4", 2))


def test_rows_are_split_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    rows = jax.device_put(np.arange(24).reshape(8, 3), batch_sharding(mesh))
    assert rows.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
    assert len({int(shard.data[0, 0]) for shard in rows.addressable_shards}) == 4


if __name__ == "__main__":
    for name, configs in FAMILIES.items():
        (SNAPSHOTS / f"{name}.txt").write_text(describe(configs[0]))
        print("wrote", SNAPSHOTS / f"{name}.txt")
