"""What devices exchange in one update, read from the compiled step: who is scattered, who is gathered, and in which dtype.

XLA:CPU reduces whole and slices afterwards, where XLA:TPU scatters as it reduces. So what is gathered is checked on both, what
is reduced for TPU alone, on a slice that libtpu compiles for.
"""

import functools
import math
import re
from typing import NamedTuple

import jax
import pytest

from bert_jax.data.store import TokenStore
from bert_jax.objectives.pretraining import PretrainingTask
from bert_jax.parallel.mesh import MeshConfig, make_mesh
from bert_jax.training.optimizer import make_optimizer
from bert_jax.training.step import abstract_state, make_train_step

# Wide enough for XLA:TPU to take its real decisions; no two sizes are equal, so that a shape tells what it is of.
V, D, E, F, L, ROWS, LAYERS = 1024, 256, 128, 512, 64, 48, 3
SETTINGS = (
    f"task.encoder.vocab_size={V}", f"task.encoder.hidden_width={D}", f"task.encoder.ffn_width={F}", "task.encoder.heads=4",
    f"task.encoder.max_length={L}", f"task.examples.length={L}", f"task.encoder.layers={LAYERS}",
    "task.encoder.compute_dtype=bfloat16",
)
MATRIX = D * D  # elements of the smallest matrix of a layer


class Collective(NamedTuple):
    kind: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * {"f32": 4, "bf16": 2}.get(self.dtype, 4)


def collectives(text: str) -> set[Collective]:
    """Kinds, dtypes and shapes that occur. A reduce-scatter has the shape of what is reduced; XLA:TPU shows it as a fusion
    named all-reduce-scatter."""
    found, computation = set(), ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computation = line
        operation = re.match(
            r"\s+(?:ROOT )?%\S+ = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", line
        )
        if operation:
            kind = "reduce-scatter" if "all-reduce-scatter" in computation else operation[2]
            for dtype, shape in re.findall(r"\b(f32|bf16|s32|u32|pred)\[([\d,]*)\]", operation[1]):
                found.add(Collective(kind, dtype, tuple(int(size) for size in shape.split(",") if size)))
    return found


@pytest.fixture(scope="module")
def exchanged(tiny_store, tiny_experiment):
    """``exchanged(family, sizes, devices=None, reduce_dtype="float32")``: the collectives of the compiled update."""

    @functools.cache
    def compile_step(family: str, sizes: tuple[int, int, int], devices: tuple | None = None, reduce_dtype: str = "float32"):
        experiment = tiny_experiment(family, *SETTINGS, f"task.encoder.embedding_width={D if family == 'bert' else E}")
        task = PretrainingTask(experiment.task, TokenStore(tiny_store))
        mesh = make_mesh(MeshConfig(*sizes), devices)
        optimizer = make_optimizer(experiment.optimizer, 100, task.logical_axes())
        abstract = abstract_state(task, optimizer, mesh)
        batch = {name: jax.ShapeDtypeStruct((ROWS, *rows.shape[1:]), rows.dtype)
                 for name, rows in next(task.train_batches(ROWS, 0)).items()}
        with jax.set_mesh(mesh):
            step = make_train_step(task, optimizer, mesh, abstract, accumulate=1, reduce_dtype=reduce_dtype)
            return collectives(step.lower(abstract, batch).compile().as_text())

    return compile_step


def large(found: set[Collective], kind: str) -> set[tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes, without axes of size 1, of what is at least a matrix."""
    return {(c.dtype, tuple(size for size in c.shape if size > 1)) for c in found
            if c.kind == kind and math.prod(c.shape) >= MATRIX}


def assert_layer_by_layer(found: set[Collective]) -> None:
    """Nothing of a whole stack of layers crosses between devices: parameters come when their layer runs."""
    assert not [c for c in found if c.shape and c.shape[0] == LAYERS and math.prod(c.shape) >= MATRIX]


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_fsdp_gathers_layer_by_layer(exchanged, family):
    found = exchanged(family, (1, 8, 1))
    assert_layer_by_layer(found)
    gathered = {shape for _, shape in large(found, "all-gather")}
    assert {(D, D), (D, F), (F, D)} <= gathered, "a layer's matrices, each when it is used"


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_tensor_parallelism_never_has_the_whole_vocabulary(exchanged, family):
    """Neither the logits nor the token table (nor their gradients): no exchanged array has V rows or columns."""
    found = exchanged(family, (1, 2, 4))
    assert_layer_by_layer(found)
    assert not [c for c in found if V in c.shape]


@pytest.mark.parametrize("sizes", [(2, 4, 1), (2, 2, 2)], ids=["2x4x1", "2x2x2"])
def test_no_device_ever_has_the_whole_batch(exchanged, sizes):
    """Where data and fsdp both split the rows, XLA must be led from the table's layout to that of the rows."""
    assert not [c for c in exchanged("bert", sizes) if math.prod(c.shape) >= ROWS * L * D // 2]


@pytest.mark.tpu_compile
@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_fsdp_on_tpu(exchanged, tpu_slice, family):
    found = exchanged(family, (1, 8, 1), tuple(tpu_slice("v5e:2x4")))
    assert_layer_by_layer(found)
    matrices = {("f32", (D, D)), ("f32", (D, F)), ("f32", (F, D)), ("f32", (V, D) if family == "bert" else (V, E))}
    assert matrices <= large(found, "reduce-scatter") | {(d, s[::-1]) for d, s in large(found, "reduce-scatter")}
    assert not large(found, "all-reduce"), "gradients are scattered as they are reduced"
    gathered = large(found, "all-gather") | large(found, "collective-permute")
    assert gathered and {dtype for dtype, _ in gathered} == {"bf16"}, "parameters travel in the dtype of the products"


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_bfloat16_reduction_on_tpu(exchanged, tpu_slice):
    """The same arrays in half the bytes, and nothing large in float32 any more but the embedded tokens."""
    devices = tuple(tpu_slice("v5e:2x4"))
    exact, rounded = (exchanged("bert", (8, 1, 1), devices, dtype) for dtype in ("float32", "bfloat16"))
    reduced = [large(found, "all-reduce") for found in (exact, rounded)]
    assert {dtype for dtype, _ in reduced[0]} == {"f32"} and {dtype for dtype, _ in reduced[1]} == {"bf16"}
    assert not large(exact, "all-gather"), "replicas have their parameters"


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_tensor_parallelism_on_tpu(exchanged, tpu_slice):
    found = exchanged("bert", (1, 2, 4), tuple(tpu_slice("v5e:2x4")))
    assert_layer_by_layer(found)
    assert not [c for c in found if V in c.shape]
