"""Plans of real training steps: for CPU devices here, for TPU slices where libtpu is installed."""

import dataclasses
import json
import math
import re
import shlex

import jax
import numpy as np
import pytest

from bert_jax import config
from bert_jax.cli import main
from bert_jax.data.pairs import PairSpec
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.planning import plan as planning
from bert_jax.planning.chips import TPUS, Target, target
from bert_jax.planning.plan import Plan, describe, fit, plan, row
from bert_jax.training.pretrain import load_config
from tests.test_configs import ROOT

PAGE = (ROOT / "docs" / "planning.md").read_text()
ON_TPU, ON_CPU = (shlex.split(line)[1:] for line in re.search(r"```sh\n(.*?)```", PAGE, re.S)[1].splitlines())
GIB = 2**30


@pytest.mark.parametrize("pairs", ["nsp", "sop", "none"])
def test_layout_is_that_of_real_batches(tiny_store, pairs):
    spec = PairSpec(length=32, pairs=pairs)
    batch = spec.open(TokenStore(tiny_store).split("train"), seed=0).at(np.arange(6))
    assert {name: (rows.shape, rows.dtype) for name, rows in batch.items()} == spec.layout(6, ())


@pytest.fixture(scope="module")
def on_cpu(tiny_experiment):
    experiment = config.override(tiny_experiment("bert"), ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"])
    return experiment, plan(experiment, target("cpu:8"))


def test_plan_for_cpu_devices(on_cpu):
    experiment, found = on_cpu
    assert found.fits and found.devices == 8 and found.mesh == {"data": 2, "fsdp": 2, "tensor": 2}
    assert found.per_device == experiment.train.batch_size / 4
    assert found.peak >= found.arguments > 0 and found.temporaries > 0
    kinds = {row["kind"] for row in found.collectives}
    assert {"all-gather", "all-reduce"} <= kinds
    assert found.step_time is None and found.utilisation is None
    text = str(found)
    assert "no published peaks" in text and text.endswith("fits")
    assert json.loads(json.dumps(found.to_json()))["fits"] is True


@pytest.mark.slow
def test_plan_of_packed_rows(tiny_experiment):
    """The step that training runs, with its further arrays: the plan says rows."""
    packed = config.override(tiny_experiment("bert"), ["task.examples.packing=4", "task.encoder.layers=1"])
    found = plan(packed, target("cpu:8"))
    assert found.fits and found.packing == 4
    assert "16 tokens of up to 4 examples" in str(found) and "16 rows an update" in str(found)
    one = plan(config.override(packed, ["task.examples.packing=null"]), target("cpu:8"))
    assert found.arguments > one.arguments and found.model_flops > one.model_flops and "16 sequences an update" in str(one)


def test_arguments_are_those_of_the_program(on_cpu):
    """State and batch by the shardings' own arithmetic against XLA's, and the next state lies where the state was."""
    experiment, found = on_cpu
    from bert_jax.parallel.mesh import make_mesh

    mesh = make_mesh(experiment.mesh)
    step, operands = planning._step(experiment, mesh)
    with jax.set_mesh(mesh):
        memory = step.lower(*operands).compile().memory_analysis()
    assert found.arguments == pytest.approx(memory.argument_size_in_bytes, rel=1e-3)
    state = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(operands[0]))
    assert memory.alias_size_in_bytes == pytest.approx(state, rel=1e-3)


def test_every_parameter_of_a_task_is_counted(tiny_experiment):
    """BART's decoder, ELECTRA's generator, and what LoRA keeps still, against shapes written out; no rows of padding."""
    bart = load_config(ROOT / "configs/pretrain/bart_base.py")
    width, pieces = 768, 50_265
    norm, square, ffn = 2 * width, width * width + width, 2 * 4 * width * width + 5 * width
    layer, positions = 4 * square + ffn + 2 * norm, (1024 + 2) * width
    encoder = pieces * width + positions + norm + 6 * layer
    decoder = positions + norm + 6 * (layer + 4 * square + norm)
    assert planning._parameters(bart) == (encoder + decoder, 0)

    electra = load_config(ROOT / "configs/pretrain/electra_small.py")
    count = api.count_parameters(electra.task.encoder)
    generator = api.count_parameters(electra.task.objectives[0].generator_config(electra.task.encoder))
    shared = (30_522 + 512 + 2 + 2) * 128
    assert planning._parameters(electra) == (count + generator - shared, 0)

    lora = config.override(tiny_experiment("bert"), ["task.encoder.lora_rank=2"])
    encoder = lora.task.encoder
    trained, still = planning._parameters(lora)
    heads = sum(leaf.size for part, tree in jax.eval_shape(lambda: api.init(encoder, jax.random.key(0))).items()
                for leaf in jax.tree.leaves(tree) if part in encoder.with_heads)
    heads -= encoder.padded_vocab_size - encoder.vocab_size
    assert trained == heads + encoder.layers * 2 * 2 * 2 * encoder.hidden_width
    assert trained + still == api.count_parameters(encoder)


@pytest.mark.slow
def test_frozen_parameters_are_said_and_cost_less(tiny_experiment):
    """LoRA has fewer parameters to read and write than training all has."""
    alone = target("cpu:1")
    peaks = dataclasses.replace(alone, devices=alone.devices[:1], chip=TPUS["v5e"])
    small = ["task.encoder.layers=1", "train.batch_size=1"]
    whole = plan(tiny_experiment("bert", *small), peaks)
    lora = plan(tiny_experiment("bert", *small, "task.encoder.lora_rank=1"), peaks)
    assert whole.frozen == 0 and "frozen" not in str(whole)
    assert 0 < lora.frozen < lora.parameters and f"({lora.frozen:,} of them frozen)" in str(lora)
    assert lora.memory_time < whole.memory_time


def test_limit_refuses_a_program_that_compiles(on_cpu):
    """Where the compiler does not refuse by itself (CPU, GPU), the peak is held against the memory."""
    experiment, found = on_cpu
    tight = dataclasses.replace(target("cpu:8"), limit=found.peak - 1)
    refused = plan(experiment, tight)
    assert not refused.fits and "exceeds" in refused.refusal and str(refused).endswith("does not fit")
    assert plan(experiment, dataclasses.replace(tight, limit=found.peak)).fits


def test_roofline(on_cpu):
    """With peaks given, the three times and their bounds."""
    experiment, _ = on_cpu
    found = plan(experiment, dataclasses.replace(target("cpu:8"), chip=TPUS["v5e"]))
    parts = (found.compute_time, found.memory_time, found.exchange_time)
    assert found.step_time == (max(parts), sum(parts)) and min(parts) > 0
    worst, best = found.utilisation
    assert 0 < worst < best <= 1
    assert best == pytest.approx(found.model_flops / (8 * TPUS["v5e"].flops) / max(parts))
    assert "MFU" in str(found) and "assuming" in str(found)


@pytest.mark.parametrize(
    ("fixed", "each", "most"), [(10, 1.0, 90), (0, 0.3, 333), (99.5, 1.0, 0), (50, 0.011, 4545), (1, 60, 1)]
)
@pytest.mark.parametrize("compiler", ["says", "does not say"])
def test_fit_finds_the_largest(monkeypatch, tiny_experiment, fixed, each, most, compiler):
    """Against a compiler whose memory is a straight line: within a sixteenth of the truth, in few attempts."""
    attempts = []

    def pretend(experiment, target):
        size = experiment.train.batch_size // 8
        needed = fixed + each * size
        attempts.append(size)
        fits = needed <= 100
        return Plan("x", 8, {}, experiment.task.encoder.remat, 1, 1, size, 1, size, 0,
                    needed if fits or compiler == "says" else None, needed if fits else None, 100 * GIB,
                    None if fits else "Ran out of memory", 1, 1, [], None, None, None, None, 0.0)

    monkeypatch.setattr(planning, "plan", pretend)
    found = fit(tiny_experiment("bert"), Target("x", tuple(jax.devices()), None, 100 * GIB), ("attention",))[0]
    assert found.per_device <= most and most - found.per_device <= max(1, most // 16)
    assert found.plan.fits == (most > 0)
    assert sum(size <= most for size in attempts) <= 5, "what fits takes minutes to compile"
    assert "attention" in describe([found])


def test_fit_says_what_it_has_found_so_far(monkeypatch, tiny_experiment):
    """Before the next policy begins, so that whoever interrupts it has the rows of those before; and how the search stands."""
    told = []

    def pretend(experiment, target):
        size = experiment.train.batch_size // 8
        fits = size <= 4
        return Plan("x", 8, {}, experiment.task.encoder.remat, 1, 1, size, 1, size, 0, None, size if fits else None, 100 * GIB,
                    None if fits else "Ran out of memory", 1, 1, [], None, None, None, None, 0.0)

    clock = iter(range(0, 10_000, 65))
    monkeypatch.setattr(planning, "plan", pretend)
    monkeypatch.setattr(planning.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(planning.flops, "task_work", lambda _: planning.flops.Work(0, 0, 0, 85 * GIB))
    fits = fit(tiny_experiment("bert"), Target("x", tuple(jax.devices()), None, 100 * GIB), ("none", "full"),
               report=told.append, found=told.append)
    lines = [one if isinstance(one, str) else row(one) for one in told]
    assert lines[:3] == [
        "remat none, 1 a device (1:05 so far)", "remat none, 2 a device, 1 fits (2:10 so far)",
        "remat none, 3 a device, 1 fits, 2 fits (3:15 so far)",
    ]
    first, second = (lines.index(row(one)) for one in fits)
    assert lines[first].startswith("none          4 ") and lines[first + 1].startswith("remat full, 4 a device (")
    assert second == len(lines) - 1 and describe(fits).splitlines()[1:] == [lines[first], lines[second]]


def test_fit_needs_a_limit(tiny_experiment):
    with pytest.raises(BertJaxError, match="memory of a device of cpu:8 is not known"):
        fit(tiny_experiment("bert"), target("cpu:8"))


def test_wrong_mesh_and_batch_are_named(tiny_experiment):
    with pytest.raises(BertJaxError, match="mesh.*does not fit 8 device"):
        plan(tiny_experiment("bert", "mesh.data=3"), target("cpu:8"))
    with pytest.raises(BertJaxError, match="train.batch_size / accumulate is 12"):
        plan(tiny_experiment("bert", "train.batch_size=12"), target("cpu:8"))
    with pytest.raises(BertJaxError, match="train.eval_batch_size is 12"):  # a run would refuse it once the slice is paid for
        plan(tiny_experiment("bert", "train.eval_batch_size=12"), target("cpu:8"))
    with pytest.raises(BertJaxError, match="optimizer.unfreeze_every is 9: all of 2 layers"):
        plan(tiny_experiment("bert", "optimizer.unfreeze_every=9"), target("cpu:8"))


def test_command_line(capsys):
    """The second command of docs/planning.md; the first is below, where it can run."""
    assert main(ON_CPU) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == 8 and found["batch_size"] == 64 and found["parameters"] > 0
    assert main(["plan", "--config", "tests/tiny_bert.py", "--topology", "v5e"]) == 1
    assert "give a TPU slice" in capsys.readouterr().err


# With XLA's compiler for TPUs


def planned(file: str, topology: str, *assignments: str) -> Plan:
    return plan(config.override(load_config(ROOT / "configs/pretrain" / file), assignments), target(topology))


@pytest.mark.slow
@pytest.mark.tpu_compile
def test_a_small_slice(libtpu, capsys):
    """The first command of docs/planning.md: BERT-tiny on four chips fits, with what FSDP exchanges."""
    status = main([*ON_TPU, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == 0 and found["fits"]
    assert found["limit"] == pytest.approx(15.75 * GIB) and found["peak"] < GIB
    kinds = {row["kind"] for row in found["collectives"]}
    assert {"all-gather", "reduce-scatter"} <= kinds
    low, high = found["utilisation"]
    assert 0 < low < high < 1


@pytest.mark.slow
@pytest.mark.tpu_compile
def test_lookups_on_sparse_cores_do_not_stop_the_compiler(libtpu):
    """jax cannot read what this compiler gives back of them, on four chips already with this model."""
    found = planned("bert_tiny_128.py", "v5p-8", "mesh.data=1", "mesh.fsdp=4", "train.batch_size=256", "train.accumulate=1")
    assert found.fits and found.devices == 4 and found.peak < GIB


@pytest.mark.tpu_compile
def test_what_does_not_fit_is_refused_in_the_compiler_s_words(libtpu, capsys):
    arguments = ["plan", "--config", "configs/pretrain/bert_tiny_128.py", "--topology", "v5e:2x2",
                 "--set", "train.batch_size=1048576", "--set", "train.accumulate=1"]
    assert main(arguments) == 1
    text = capsys.readouterr().out
    assert "Ran out of memory on HBM" in text and "(15.75G)" in text and text.rstrip().endswith("does not fit")


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_256_chips(libtpu):
    """BERT-large, 512 tokens, LAMB, 16 a chip on a v5e-256 without full recomputation: the size the project promises."""
    found = planned("bert_large_512.py", "v5e-256", "train.batch_size=4096", "train.accumulate=1", "mesh.fsdp=8")
    assert found.fits and found.devices == 256 and found.per_device == 16
    assert found.remat == "elementwise"  # the recipe's, as the memory table has it: nothing but that is recomputed
    assert found.peak < 12 * GIB
