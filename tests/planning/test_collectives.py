"""Collectives read from compiled programs: kinds, bytes, groups, and how often a loop runs them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.planning.collectives import Collective, _groups, collectives, summary


def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def compiled(function, *specs_and_shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh(), spec))
                 for spec, shape in specs_and_shapes]
    return jax.jit(function, out_shardings=NamedSharding(mesh(), P())).lower(*arguments).compile().as_text()


def test_all_reduce_of_a_product():
    """[8, 16] @ [16, 32] with the inner axis over four devices: one all-reduce of the result [8, 32] in fours."""
    found = collectives(compiled(lambda x, y: x @ y, (P(None, "b"), (8, 16)), (P("b", None), (16, 32))), 8)
    (one,) = found
    assert (one.kind, one.dtype, one.bytes, one.times, one.members) == ("all-reduce", "f32", 8 * 32 * 4, 1, 4)
    assert found[0].sent == 2 * 3 / 4 * 8 * 32 * 4
    np.testing.assert_array_equal(np.sort(found[0].groups, axis=None), np.arange(8))


def test_a_loop_counts_as_often_as_it_runs():
    def function(x, ys):
        return jax.lax.scan(lambda x, y: (jnp.tanh(x @ y), None), x, ys)[0]

    found = collectives(compiled(function, (P(None, "b"), (16, 16)), (P(None, "b", None), (7, 16, 16))), 8)
    inside = [one for one in found if one.times == 7]
    assert inside and sum(one.bytes for one in inside if one.kind == "all-reduce") == 16 * 16 * 4


def test_gather():
    found = collectives(compiled(lambda x: x + 1, (P(("a", "b")), (64, 3))), 8)
    assert [(one.kind, one.bytes, one.members) for one in found] == [("all-gather", 64 * 3 * 4, 8)]


def test_groups_in_every_notation():
    listed = _groups("replica_groups={{0,2,4,6},{1,3,5,7}}, x", 8)
    np.testing.assert_array_equal(listed, [[0, 2, 4, 6], [1, 3, 5, 7]])
    np.testing.assert_array_equal(_groups("replica_groups=[2,4]<=[8], x", 8), np.arange(8).reshape(2, 4))
    np.testing.assert_array_equal(_groups("replica_groups=[2,4]<=[4,2]T(1,0), x", 8), listed)
    np.testing.assert_array_equal(_groups("replica_groups=mesh['a'=4,'b'=2] {'a'}, x", 8), listed)
    np.testing.assert_array_equal(_groups("replica_groups=mesh['a'=4,'b'=2] {'b'}, x", 8), np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(np.sort(_groups("replica_groups=mesh['a'=4,'b'=2] {'b','a'}, x", 8)), np.arange(8)[None])
    np.testing.assert_array_equal(_groups("replica_groups={}, x", 4), np.arange(4)[None])
    with pytest.raises(ValueError, match="not known"):
        _groups("replica_groups=something, x", 8)


def test_asynchronous_parts_are_one():
    """XLA:TPU starts, continues and ends a collective in three computations with one channel; a reduce-scatter is a fusion."""
    text = """HloModule jit_step

%start (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
}

%done (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
}

%all-reduce-scatter.1 (input: f32[32,8]) -> f32[8,8] {
  %input = f32[32,8]{1,0} parameter(0)
  %all-reduce.5 = f32[32,8]{1,0} all-reduce(%input), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[8,8]{1,0} dynamic-slice(%all-reduce.5), dynamic_slice_sizes={8,8}
}

%condition (p: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %f = bf16[16,8]{1,0} fusion(%p), kind=kCustom, calls=%start
  %g = bf16[16,8]{1,0} fusion(%p), kind=kCustom, calls=%done
  %h = f32[8,8]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], bf16[4,8]) tuple(%p, %f)
}

ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %while.1 = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) while(%p), condition=%condition, body=%body
  %a = (f32[], f32[3]) all-reduce(%p, %p), channel_id=9, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %r = bf16[4,8]{1,0} get-tuple-element(%while.1), index=1
}
"""
    found = {one.kind: one for one in collectives(text, 8)}
    assert set(found) == {"all-gather", "reduce-scatter", "all-reduce"}
    gather, scatter, reduce = found["all-gather"], found["reduce-scatter"], found["all-reduce"]
    assert (gather.times, gather.bytes, gather.dtype, gather.members) == (24, 16 * 8 * 2, "bf16", 4)
    assert (scatter.times, scatter.bytes, scatter.dtype, scatter.members) == (24, 32 * 8 * 4, "f32", 4)
    assert (reduce.times, reduce.bytes, reduce.members) == (1, 16, 8)
    rows = summary(list(found.values()), [0] * 4 + [1] * 4)
    assert {row["kind"]: row["crosses_slices"] for row in rows} == {
        "all-gather": False, "reduce-scatter": False, "all-reduce": True
    }
    assert rows[0]["kind"] == "reduce-scatter" and rows[0]["sent"] == 24 * 3 / 4 * 32 * 8 * 4


def test_a_permute_sends_all():
    assert Collective("collective-permute", "f32", 100, 1, np.empty((0, 0), int), "x").sent == 100
