"""A plan: what a training step needs on given devices, measured on the program that XLA compiles for them."""

import contextlib
import dataclasses
import logging
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from bert_jax.parallel.mesh import batch_sharding, batch_shards, check_rows, make_mesh
from bert_jax.planning import flops
from bert_jax.planning.chips import Target
from bert_jax.planning.collectives import Collective, collectives, summary
from bert_jax.training.experiment import Experiment
from bert_jax.training.optimizer import frozen
from bert_jax.training.step import make_update

log = logging.getLogger("bert_jax")

POLICIES = tuple(api.STORED)  # of EncoderConfig.remat, cheapest first


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found out. Sizes in bytes and for one device, times in seconds, counts for one update of the whole job.

    Attributes:
      topology, devices, mesh: what it is planned for. remat: the encoder's policy. parameters: values of all that the task
        trains or keeps still, generators, decoders and heads of objectives among them; of these ``frozen`` are kept still.
      length: tokens of a sequence. batch_size: sequences of an update. per_device: sequences that a device holds at once, in
        one micro-batch of ``accumulate``, divided over data and fsdp.
      arguments: state and batch. temporaries: of the program, or as XLA names them in a refusal. peak: None where refused.
      limit: what XLA may use, None if unknown.
      refusal: XLA's own words where the program does not fit.
      model_flops, computed_flops: without and with what is computed twice.
      collectives: rows of :func:`bert_jax.planning.collectives.summary`.
      compute_time, memory_time, exchange_time: of an update if nothing else cost anything; None where no peaks are known.
      compile_seconds: tracing, lowering and compiling.
      packing: P, where a row of ``length`` tokens has up to so many examples: what is said of sequences is then true of rows.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    remat: str
    parameters: int
    length: int
    batch_size: int
    accumulate: int
    per_device: float
    arguments: int
    temporaries: int | None
    peak: int | None
    limit: int | None
    refusal: str | None
    model_flops: float
    computed_flops: float
    collectives: list[dict]
    compute_time: float | None
    memory_time: float | None
    exchange_time: float | None
    peak_flops: float | None
    compile_seconds: float
    packing: int | None = None
    frozen: int = 0

    @property
    def fits(self) -> bool:
        """Whether XLA compiled it, within the memory of a device where that is known."""
        return self.refusal is None

    @property
    def step_time(self) -> tuple[float, float] | None:
        """Seconds of an update: if all three overlap perfectly, and if nothing does."""
        times = (self.compute_time, self.memory_time, self.exchange_time)
        return None if None in times else (max(times), sum(times))

    @property
    def utilisation(self) -> tuple[float, float] | None:
        """Model FLOPs utilisation at the two step times, the worse first."""
        if self.step_time is None:
            return None
        best, worst = (self.model_flops / (self.peak_flops * self.devices) / seconds for seconds in self.step_time)
        return worst, best

    def to_json(self) -> dict[str, Any]:
        """Everything, with ``fits``, ``step_time`` and ``utilisation``."""
        derived = {"fits": self.fits, "step_time": self.step_time, "utilisation": self.utilisation}
        return dataclasses.asdict(self) | derived

    def __str__(self) -> str:
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        unit = "rows" if self.packing else "sequences"
        packed = f" of up to {self.packing} examples" if self.packing else ""
        frozen = f" ({self.frozen:,} of them frozen)" if self.frozen else ""
        lines = [
            f"devices      {self.devices} ({self.topology}), mesh {mesh}",
            f"model        {self.parameters:,} parameters{frozen}, {self.length} tokens{packed}, remat {self.remat}",
            f"batch        {self.batch_size:,} {unit} an update, {self.per_device:g} a device"
            + (f" in each of {self.accumulate} micro-batches" if self.accumulate > 1 else ""),
        ]
        limit = f" of {_gib(self.limit)}" if self.limit else ""
        if self.peak is None:
            lines.append(f"memory       refused: {self.refusal}")
        else:
            lines.append(
                f"memory       peak {_gib(self.peak)}{limit} a device: arguments {_gib(self.arguments)}, temporaries "
                f"{_gib(self.temporaries)}" + ("" if self.fits else f"; {self.refusal}")
            )
        lines.append(f"arithmetic   {self.model_flops:.3g} FLOPs an update, {self.computed_flops:.3g} with repetitions")
        for row in self.collectives:
            across = ", between slices" if row["crosses_slices"] else ""
            lines.append(f"exchange     {row['kind']} {row['dtype']} over {row['members']} devices{across}: {row['count']} x, "
                         f"{row['bytes'] / 2**20:,.1f} MiB, each sends {row['sent'] / 2**20:,.1f} MiB")
        if self.peak is not None and not self.collectives:
            lines.append("exchange     none")
        if self.step_time and self.fits:
            (fast, slow), (low, high) = self.step_time, self.utilisation
            lines += [
                f"roofline     arithmetic {_ms(self.compute_time)}, memory {_ms(self.memory_time)}, exchange "
                f"{_ms(self.exchange_time)}",
                f"step         {_ms(fast)} if all of it overlaps, {_ms(slow)} if nothing does: MFU {high:.0%} to {low:.0%}, "
                f"{self.batch_size / slow:,.0f} to {self.batch_size / fast:,.0f} {unit} a second",
                f"assuming     {ASSUMPTIONS}",
            ]
        elif self.fits:
            lines.append("roofline     none: no published peaks for these devices are known here")
        lines.append(f"compiled in  {self.compile_seconds:.1f} s")
        lines.append("fits" if self.fits else "does not fit")
        return "\n".join(lines)


ASSUMPTIONS = (
    "published peaks of arithmetic, memory and links, fully used; every result of a product written and read once, all else "
    "fused, in the encoder (a generator or decoder moves nothing), of weights a device's own share; rings along one axis of "
    "the slice. Real steps are slower"
)


def plan(experiment: Experiment, target: Target) -> Plan:
    """Compiles the training step of ``experiment`` for ``target`` and reports on it. No data is needed, no program is run. Of
    objectives that take turns, those of the task itself are planned, and one warning line says so.

    Raises:
      BertJaxError: mesh or batch do not fit together, the task is no pre-training, what a run would refuse where it begins, or
        the compiler fails for another reason than memory.
    """
    settings, encoder = experiment.train, experiment.task.encoder
    if not isinstance(experiment.task, Pretraining):
        raise BertJaxError(f"the task is {type(experiment.task).__name__}: only Pretraining can be planned")
    if experiment.task.turns:
        log.warning("planned without the turns %s: only task.objectives", ", ".join(t.name for t in experiment.task.turns))
    mesh = make_mesh(experiment.mesh, list(target.devices))
    check_rows("train.batch_size / accumulate", settings.batch_size // settings.accumulate, mesh)
    check_rows("train.eval_batch_size", settings.eval_size, mesh)
    experiment.check_beginning()
    began = time.monotonic()
    refusal = peak = text = None
    step, operands = _step(experiment, mesh)
    arguments = sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(operands))
    try:
        with jax.set_mesh(mesh), _no_cache():
            lowered = step.trace(*operands).lower(lowering_platforms=(target.platform,))
            compiled = lowered.compile(compiler_options=dict(target.options))
        memory, text = compiled.memory_analysis(), compiled.as_text()
        temporaries = memory.temp_size_in_bytes
        peak = memory.peak_memory_in_bytes or arguments + temporaries
    except jax.errors.JaxRuntimeError as error:
        refusal, temporaries = _refusal(error)
    seconds = time.monotonic() - began
    if peak and target.limit and peak > target.limit:
        refusal = f"peak {_gib(peak)} exceeds the {_gib(target.limit)} of a device"
    length = experiment.task.examples.length
    with jax.set_mesh(mesh):  # which decides whether attention is fused
        work = flops.task_work(PretrainingTask(experiment.task, None))
    trained, still = _parameters(experiment)
    try:
        found = collectives(text, mesh.size) if text else []
    except ValueError as error:
        log.warning("what devices exchange is not counted: %s", error)
        found = []
    slices = [getattr(device, "slice_index", None) or 0 for device in mesh.devices.flat]
    times = _times(experiment, work, (trained, still), found, slices, mesh, target)
    return Plan(
        target.name, mesh.size, dict(mesh.shape), encoder.remat, trained + still, length, settings.batch_size,
        settings.accumulate, settings.batch_size / settings.accumulate / batch_shards(mesh),
        arguments, temporaries, peak, target.limit, refusal,
        work.useful * settings.batch_size, (work.useful + work.repeated) * settings.batch_size, summary(found, slices),
        *times, target.chip and target.chip.flops, seconds, experiment.task.examples.packing, still,
    )


@dataclasses.dataclass(frozen=True)
class Fit:
    """The largest batch of a policy: sequences a device (0: not even one), and its plan, or the refusal's."""

    remat: str
    per_device: int
    plan: Plan

    def to_json(self) -> dict[str, Any]:
        return {"remat": self.remat, "per_device": self.per_device, "plan": self.plan.to_json()}


def fit(
    experiment: Experiment, target: Target, policies: tuple[str, ...] = POLICIES,
    report: Callable[[str], None] = lambda _: None, found: Callable[[Fit], None] = lambda _: None,
) -> list[Fit]:
    """The most sequences that a device can hold at once under each remat policy, cheapest policy first.

    The batch of the experiment is replaced by one micro-batch of as many sequences as are tried for each share of the batch.
    Doubles until XLA refuses, then halves the distance; what is refused takes seconds, what fits a minute or more.

    Args:
      report: is told what is compiled next, and what is known of its policy and the time spent so far.
      found: is given what :func:`fit` will return, each as soon as it is known.

    Raises:
      BertJaxError: as :func:`plan`; or the memory of a device is not known, so that everything would fit.
    """
    if target.limit is None:
        raise BertJaxError(f"--fit: the memory of a device of {target.name} is not known, so nothing would be refused")
    mesh = make_mesh(experiment.mesh, list(target.devices))
    shards, task = batch_shards(mesh), experiment.task
    gradients = 4 * _parameters(experiment)[0] // (mesh.shape["fsdp"] * mesh.shape["tensor"])
    fits, began = [], time.monotonic()
    for policy in policies:
        encoder, tried = dataclasses.replace(task.encoder, remat=policy), {}

        def attempt(per_device: int, encoder: EncoderConfig = encoder, tried: dict[int, bool] = tried) -> Plan:
            before = "".join(f", {size} {'fits' if fits else 'does not fit'}" for size, fits in tried.items())
            minutes, seconds = divmod(int(time.monotonic() - began), 60)
            report(f"remat {encoder.remat}, {per_device} a device{before} ({minutes}:{seconds:02d} so far)")
            train = dataclasses.replace(experiment.train, batch_size=per_device * shards, accumulate=1)
            made = plan(
                dataclasses.replace(experiment, task=dataclasses.replace(task, encoder=encoder), train=train), target
            )
            tried[per_device] = made.fits
            return made

        with jax.set_mesh(mesh):
            stored = flops.task_work(PretrainingTask(dataclasses.replace(task, encoder=encoder), None)).stored
        stored /= mesh.shape["tensor"]
        start = int(0.85 * (target.limit - 4 * gradients) / stored)
        fits.append(_largest(policy, max(start, fits[-1].per_device if fits else 1, 1), gradients, attempt))
        found(fits[-1])
    return fits


HEADER = "remat         a device   peak        of          FLOPs (repeated)   step at best"


def row(one: Fit) -> str:
    """The line of a policy under ``HEADER``."""
    if not one.per_device:
        return f"{one.remat:13} none       {one.plan.refusal}"
    repeated = one.plan.computed_flops / one.plan.model_flops - 1
    step = _ms(one.plan.step_time[0]) if one.plan.step_time else "-"
    return (f"{one.remat:13} {one.per_device:<10} {_gib(one.plan.peak):11} {_gib(one.plan.limit):11} "
            f"{'+' + format(repeated, '.0%'):18} {step}")


def describe(fits: list[Fit]) -> str:
    """A table, one line for each policy."""
    return "\n".join([HEADER, *map(row, fits)])


def _largest(policy: str, start: int, gradients: int, attempt: Callable[[int], Plan]) -> Fit:
    """Attempts sizes between the largest that fits and the smallest that does not, until they are within a sixteenth. Where
    to try next is read off the line through the temporaries of the last two attempts, the first being ``gradients`` at 0."""
    best, refused, low, high, size = None, None, 0, None, start
    points = [(0, gradients)]
    while high is None or high - low > max(1, low // 16):
        found = attempt(size)
        if found.fits:
            best, low = Fit(policy, size, found), size
        else:
            refused, high = found, size
        guess = 0
        if found.temporaries:
            (left, base), points = points[-1], [(size, found.temporaries)]
            slope = (found.temporaries - base) / (size - left)
            guess = int(size + (found.limit - found.arguments - found.temporaries) / slope) if slope > 0 else 2 * size
        if high is None:
            size = max(guess, low + low // 16 + 1)
        else:
            size = guess if low < guess < high else (low + high) // 2
    return best or Fit(policy, 0, refused)


def _step(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[Any, tuple[Any, dict[str, jax.ShapeDtypeStruct]]]:
    """The training step, and its operands as shapes: the very one that :func:`bert_jax.training.train.train` runs."""
    settings = experiment.train
    task = PretrainingTask(experiment.task, None)
    _, abstract, step = make_update(
        task, mesh, experiment.optimizer, settings.steps, accumulate=settings.accumulate, reduce_dtype=settings.reduce_dtype
    )
    rows = batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
             for name, x in task.batch_shapes(settings.batch_size).items()}
    return step, (abstract, batch)


@contextlib.contextmanager
def _no_cache():
    """A program from the compilation cache has no memory analysis on every platform, and its time would say nothing."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _refusal(error: Exception) -> tuple[str, int | None]:
    """XLA's words, and the bytes of temporaries that it says it would need."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
        raise BertJaxError(f"XLA could not compile the step: {text[:300]}") from error
    words = re.sub(r"^.*?(?=Ran out of memory|Out of memory)| HLO module:.*$", "", text)
    needed = re.search(r"\(([\d.]+)([GM])\) exceeds", text)
    return words[:300], int(float(needed[1]) * {"G": 2**30, "M": 2**20}[needed[2]]) if needed else None


def _parameters(experiment: Experiment) -> tuple[int, int]:
    """How many values the step trains, and how many it keeps still; rows that only pad the vocabulary are left out."""
    task, encoder = PretrainingTask(experiment.task, None), experiment.task.encoder
    axes, shapes = task.logical_axes(), jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0))

    def values(leaf, names):
        return leaf.size // encoder.padded_vocab_size * encoder.vocab_size if names and "vocab" in names else leaf.size

    counts = jax.tree.leaves(jax.tree.map(values, shapes, axes))
    still = jax.tree.leaves(frozen(experiment.optimizer, axes))
    kept = sum(count for count, is_still in zip(counts, still, strict=True) if is_still)
    return sum(counts) - kept, kept


def _times(
    experiment: Experiment, work: flops.Work, parameters: tuple[int, int], found: list[Collective], slices: list[int],
    mesh: jax.sharding.Mesh, target: Target,
) -> tuple[float | None, float | None, float | None]:
    chip, settings, encoder = target.chip, experiment.train, experiment.task.encoder
    if chip is None:
        return None, None, None
    sequences = settings.batch_size / mesh.size  # tensor parallelism shares a sequence out
    compute = (work.useful + work.repeated) * sequences / chip.flops
    size = 2 if encoder.compute_dtype == "bfloat16" else 4
    shards = mesh.shape["fsdp"] * mesh.shape["tensor"]
    state = flops.state_traffic(*(count / shards for count in parameters), settings.accumulate, size)
    memory = (work.traffic * sequences + state) / chip.bandwidth
    exchange = sum(one.sent * one.times / (chip.network if one.crosses(slices) else chip.link) for one in found)
    return compute, memory, exchange


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds < 10 else f"{seconds:,.1f} s"
