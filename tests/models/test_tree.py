"""The parameter tree is a contract: checkpoints, conversion and sharding depend on its names, shapes and axes."""

import pathlib

import jax
import pytest

from bert_jax.models import api
from bert_jax.models.config import EncoderConfig, preset

SNAPSHOTS = pathlib.Path(__file__).parent / "snapshots"
CONFIGS = {
    "bert-tiny": preset("bert-tiny"),
    "albert-base-v2": preset("albert-base-v2"),
    "partly-shared": EncoderConfig(
        vocab_size=1000, embedding_width=32, hidden_width=64, layers=4, heads=4, ffn_width=256, max_length=128,
        share="feed_forward", groups=2, inner_layers=2, vocab_multiple=128, with_heads=("pooler", "mlm"),
    ),
    "relative": EncoderConfig(
        vocab_size=1000, embedding_width=64, hidden_width=64, layers=3, heads=4, ffn_width=256, max_length=128,
        positions="relative", mlm_transform=False, with_heads=("mlm",),
    ),
}


def describe(config: EncoderConfig) -> str:
    """One line per array: its path, its shape, the logical name of every axis."""
    shapes = jax.tree.leaves_with_path(jax.eval_shape(lambda: api.init(config, jax.random.key(0))))
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731 (jax wants a function)
    axes = jax.tree.leaves_with_path(api.logical_axes(config), is_leaf=is_axes)
    lines = []
    for (path, leaf), (axes_path, names) in zip(shapes, axes, strict=True):
        assert path == axes_path and len(names) == leaf.ndim and leaf.dtype == "float32", path
        name = "/".join(key.key for key in path)
        lines.append(f"{name:32} {list(leaf.shape)!s:20} {' '.join(map(str, names))}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", CONFIGS)
def test_tree_is_as_committed(name):
    found, expected = describe(CONFIGS[name]), (SNAPSHOTS / f"{name}.txt").read_text()
    assert found == expected, (
        "the parameter tree changed: existing checkpoints no longer fit. If that is meant, run "
        f"`python {pathlib.Path(__file__).relative_to(pathlib.Path(__file__).parents[2])}` and commit the snapshots"
    )


def test_matrix_axes_are_named_at_most_once():
    """A mesh axis may shard one axis of an array only, so no array may have one logical name twice."""
    for config in CONFIGS.values():
        for names in jax.tree.leaves(api.logical_axes(config), is_leaf=lambda node: isinstance(node, tuple)):
            named = [name for name in names if name is not None]
            assert len(named) == len(set(named)), names


if __name__ == "__main__":
    for snapshot, config in CONFIGS.items():
        (SNAPSHOTS / f"{snapshot}.txt").write_text(describe(config))
        print("wrote", SNAPSHOTS / f"{snapshot}.txt")
