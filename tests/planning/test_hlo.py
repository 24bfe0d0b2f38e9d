"""What the text of a compiled program says of itself."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from bert_jax.planning.chips import target
from bert_jax.planning.hlo import computations, estimated_cycles, executions

TEXT = """HloModule jit_f, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused.1 (param: f32[8]) -> f32[8] {
  %param = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%param, %param)
}

%less (a: f32[], b: f32[]) -> pred[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %compare.1 = pred[] compare(%a, %b), direction=LT
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused.1, backend_config={"estimated_cycles":"7"}
  %sort.1 = f32[8]{0} sort(%fusion.1), dimensions={0}, to_apply=%less
  ROOT %t = (s32[], f32[8]{0}) tuple(%p, %sort.1)
}

%condition (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]{0}) parameter(0)
  ROOT %fusion.9 = pred[] fusion(%q), kind=kLoop, calls=%fused.1, backend_config={"estimated_cycles":"1"}
}

ENTRY %main (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  %fusion.2 = f32[8]{0} fusion(%y), kind=kLoop, calls=%fused.1, backend_config={"estimated_cycles":"100"}
  %w = (s32[], f32[8]{0}) while(%fusion.2), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %z = f32[8]{0} get-tuple-element(%w), index=1
}
"""


def test_a_loop_counts_as_often_as_it_runs_and_parts_of_a_fusion_not_at_all():
    program, entry = computations(TEXT)
    assert entry == "main" and program["main"][1].opcode == "fusion"
    assert executions(program, entry)["body"] == 3
    assert estimated_cycles(TEXT) == (100 + 3 * 7 + 3 * 1, 1 + 3 + 3, 3)  # of the sorts nothing is said


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="no entry"):
        estimated_cycles("nothing")


@pytest.mark.tpu_compile
def test_the_compiler_for_tpus_expects_more_of_a_larger_product(libtpu):
    device = target("v5e:2x2").devices[0]

    def cycles(size: int) -> int:
        x = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=SingleDeviceSharding(device))
        found, said, _ = estimated_cycles(jax.jit(lambda x: jnp.tanh(x @ x)).lower(x).compile().as_text())
        assert said
        return found

    small, large = cycles(1024), cycles(2048)
    assert 4 < large / small < 16, (small, large)  # eight times the operations
