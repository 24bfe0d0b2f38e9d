"""Every file in configs/ builds, says how to run it, and survives JSON; configuration values refuse what is wrong."""

import ast
import dataclasses
import json
import pathlib
from typing import Literal

import jax
import pytest

from bert_jax import config
from bert_jax.data.store import TokenStore
from bert_jax.data.streams import Streams
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import PRESETS, EncoderConfig
from bert_jax.objectives import MaskedLM
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from bert_jax.parallel.mesh import MeshConfig, check_rows, make_mesh
from bert_jax.tasks import TASKS
from bert_jax.tasks.base import Finetuning
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW, Lamb, make_optimizer, schedule
from bert_jax.training.pretrain import load_config
from bert_jax.training.step import abstract_state, make_train_step
from tests.models.test_presets import ENCODER_WITH_POOLER

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_config_file(path, tmp_path):
    experiment = load_config(path)
    assert isinstance(experiment, Experiment) and hash(experiment)
    schedule(experiment.optimizer, experiment.train.steps)  # the warm-up is shorter than the run
    if isinstance(experiment.task, Finetuning):
        check_finetuning(experiment)
    else:
        assert experiment.task.examples.length <= experiment.task.encoder.max_length
    config.save(experiment, tmp_path / "experiment.json")
    assert config.load(Experiment, tmp_path / "experiment.json") == experiment
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert "bert-jax " in text, "the docstring names the command that runs it"
    assert f"configs/{path.relative_to(ROOT / 'configs')}" in text or "benchmarks/" in text


def check_finetuning(experiment: Experiment) -> None:
    """Every kind of task can be made of its configuration; the whole held-out set is scored, and Adam corrects its bias."""
    assert type(experiment.task) in TASKS and experiment.train.eval_batches is None
    assert experiment.task.data != experiment.task.heldout
    assert experiment.optimizer.bias_correction
    api.count_parameters(experiment.task.encoder)


def phases(preset_name: str) -> list[str]:
    """The files that a published size must have: BERT's two phases; ALBERT has none, and its versions are presets."""
    stem = preset_name.replace("-", "_")
    return [f"{stem}.py"] if preset_name.startswith("albert") else [f"{stem}_128.py", f"{stem}_512.py"]


# A preset that differs from a size by its vocabulary alone needs no file: --set task.encoder.vocab_size says it.
SIZES = [name for name in PRESETS if not name.endswith(("cased", "chinese"))]


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_have_their_phases(name, tiny_store):
    """Each has the published number of parameters, and its step can be traced: on every device's own batch, at full size."""
    experiments = [load_config(ROOT / "configs" / "pretrain" / file) for file in phases(name)]
    for experiment in experiments:
        encoder = experiment.task.encoder
        assert api.count_parameters(dataclasses.replace(encoder, with_heads=("pooler",))) == ENCODER_WITH_POOLER[name]
        assert encoder.compute_dtype == "bfloat16" and set(encoder.with_heads) == {"pooler", "mlm", "pair"}
        trace_step(experiment, tiny_store)
    first, last = experiments[0].task, experiments[-1].task
    if len(experiments) == 2:
        assert (first.examples.length, last.examples.length) == (128, 512)
        assert first.init is None and last.init == f"runs/{phases(name)[0].removesuffix('.py')}"
        assert dataclasses.replace(last.encoder, remat=first.encoder.remat) == first.encoder
    else:
        assert first.examples.length == 512 and first.init is None


def trace_step(experiment: Experiment, store: pathlib.Path) -> None:
    mesh = make_mesh(MeshConfig())
    check_rows("train.batch_size / accumulate", experiment.train.batch_size // experiment.train.accumulate, mesh)
    check_rows("train.eval_batch_size", experiment.train.eval_size, mesh)
    task = PretrainingTask(experiment.task, TokenStore(store))
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, task.logical_axes())
    abstract = abstract_state(task, optimizer, mesh)
    batch = {key: jax.ShapeDtypeStruct((experiment.train.batch_size, *rows.shape[1:]), rows.dtype)
             for key, rows in next(task.train_batches(8, 0)).items()}
    with jax.set_mesh(mesh):
        step = make_train_step(task, optimizer, mesh, abstract, accumulate=experiment.train.accumulate)
        state, metrics = jax.eval_shape(step, abstract, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    assert metrics["loss"].sum.shape == ()


@dataclasses.dataclass(frozen=True)
class Apple:
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Pear:
    colour: Literal["green", "yellow"] = "green"


@dataclasses.dataclass(frozen=True)
class Basket:
    fruits: tuple[Apple | Pear, ...] = (Apple(), Pear())
    best: Apple | Pear = Apple()
    weight: float = 1.0
    count: int = 2
    note: str | None = None
    limit: int | None = 3
    washed: bool = False


def test_round_trip():
    basket = Basket((Pear("yellow"), Apple(4)), Pear(), 0.25, 7, "ripe", None, True)
    data = json.loads(json.dumps(config.to_json(basket)))
    assert config.from_json(Basket, data) == basket
    assert config.from_json(Basket, {}) == Basket()


def test_overrides():
    found = config.override(Basket(), [
        "weight=2", "count=1e3", "note=two words", "limit=null", "washed=true", "fruits.0.size=5", "fruits.1.colour=yellow",
        'best={"kind": "Pear", "colour": "yellow"}',
    ])
    assert found == Basket((Apple(5), Pear("yellow")), Pear("yellow"), 2.0, 1000, "two words", None, True)
    assert type(found.weight) is float and type(found.count) is int
    assert config.override(Experiment(task=_task()), ['optimizer={"kind": "Lamb"}']).optimizer == Lamb()


def _task():
    return load_config(ROOT / "configs" / "pretrain" / "bert_tiny.py").task


@pytest.mark.parametrize(("assignment", "message"), [
    ("cuont=3", "there is no field 'cuont'; did you mean 'count'?"),
    ("best.sise=3", "there is no field 'best.sise'; did you mean 'size'?"),
    ("fruits.2.size=3", "fruits.2 is not an index below 2"),
    ("fruits.first=3", "fruits.first is not an index"),
    ("count.deep=3", "there is no field 'count.deep'"),
    ("count", "expected path.to.field=value"),
    ("count=many", "config.count: expected int, got 'many'"),
    ("count=1.5", "config.count: expected int, got 1.5"),
    ("count=true", "config.count: expected int, got True"),
    ("washed=1", "config.washed: expected bool, got 1"),
    ("weight=heavy", "config.weight: expected float"),
    ("fruits.1.colour=blue", "'blue' is not one of green, yellow"),
    ("best.kind=Pear", "there is no field 'best.kind'"),
    ('best={"kind": "Peer"}', "unknown kind 'Peer'; did you mean 'Pear'?"),
    ('best={"kind": "Pear", "color": "green"}', "unknown key 'color' in Pear; did you mean 'colour'?"),
    ("fruits=3", 'config.fruits: expected a list such as [{"kind": "Apple"}], got 3'),
])
def test_refused_overrides(assignment, message):
    with pytest.raises(BertJaxError) as error:
        config.override(Basket(), [assignment])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_damaged_files(tmp_path):
    with pytest.raises(BertJaxError, match="cannot be read: No such file"):
        config.load(Basket, tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"kind": "Basket", "cou')
    with pytest.raises(BertJaxError, match="is not JSON"):
        config.load(Basket, tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(BertJaxError, match="a JSON object is needed, this is a list"):
        config.load(Basket, tmp_path / "list.json")
    (tmp_path / "other.json").write_text('{"kind": "Apple"}')
    with pytest.raises(BertJaxError, match="expected Basket, got Apple"):
        config.load(Basket, tmp_path / "other.json")


@pytest.mark.parametrize(("field", "value"), [
    ("steps", 0), ("batch_size", 0), ("accumulate", 0), ("log_every", 0), ("keep", 0), ("save_every", -1), ("eval_every", 0),
])
def test_counts_below_one(field, value):
    with pytest.raises(BertJaxError, match=f"train.{field} is {value}: it must be at least 1"):
        TrainConfig(**{field: value})


def test_lamb_would_let_a_head_vanish_that_nothing_trains():
    """Its update of what has no gradient is as long as the parameter times the rate, and points to zero."""
    task = Pretraining(EncoderConfig(), (MaskedLM(),), Streams(length=32))
    with pytest.raises(BertJaxError, match="no objective trains pooler, pair of task.encoder.with_heads, and LAMB"):
        Experiment(task, Lamb()).check_beginning()
    Experiment(task, AdamW()).check_beginning()
    Experiment(task, Lamb(weight_decay=0.0)).check_beginning()
    Experiment(dataclasses.replace(task, encoder=EncoderConfig(with_heads=("mlm",))), Lamb()).check_beginning()


def test_every_layer_is_unfrozen_within_the_run():
    """Those that are read: of twelve four here."""
    encoder = EncoderConfig(layers=12, read_layers=(1, 2, 3, 4), with_heads=("mlm",))
    for every, fits in ((20, True), (39, True), (40, False)):
        task, steps = Pretraining(encoder, (MaskedLM(),), Streams(length=32)), TrainConfig(steps=200)
        made = Experiment(task, AdamW(unfreeze_every=every), steps)
        if fits:
            made.check_beginning()
        else:
            with pytest.raises(BertJaxError, match="all of 4 layers and the embeddings would train after 200 updates"):
                made.check_beginning()


def test_micro_batches_must_share_the_batch():
    with pytest.raises(BertJaxError, match="batch_size 10 is not a multiple of accumulate 4"):
        TrainConfig(batch_size=10, accumulate=4)


def test_rounded_reduction_needs_rounded_products():
    experiment = load_config(ROOT / "configs" / "pretrain" / "bert_base_128.py")
    assert config.override(experiment, ["train.reduce_dtype=bfloat16"]).train.reduce_dtype == "bfloat16"
    with pytest.raises(BertJaxError, match="reduce_dtype is bfloat16 with task.encoder.compute_dtype=float32"):
        config.override(experiment, ["train.reduce_dtype=bfloat16", "task.encoder.compute_dtype=float32"])


def test_defaults_are_the_papers():
    assert AdamW() == AdamW(1e-4, 10_000, 0.01, 0.9, 0.999, 1e-6, 1.0, False)
    assert Lamb() == Lamb(1.76e-3, 3_125, 0.01, 0.9, 0.999, 1e-6, 1.0, True)
