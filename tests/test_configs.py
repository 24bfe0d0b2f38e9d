"""Every file in configs/ builds, says how to run it, and survives JSON; configuration values refuse what is wrong."""

import ast
import dataclasses
import json
import pathlib
from typing import Literal

import pytest

from bert_jax import config
from bert_jax.errors import BertJaxError
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW, Lamb, schedule
from bert_jax.training.pretrain import load_config

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_config_file(path, tmp_path):
    experiment = load_config(path)
    assert isinstance(experiment, Experiment) and hash(experiment)
    schedule(experiment.optimizer, experiment.train.steps)  # the warm-up is shorter than the run
    assert experiment.task.examples.length <= experiment.task.encoder.max_length
    config.save(experiment, tmp_path / "experiment.json")
    assert config.load(Experiment, tmp_path / "experiment.json") == experiment
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert "bert-jax " in text, "the docstring names the command that runs it"
    assert f"configs/{path.relative_to(ROOT / 'configs')}" in text or "benchmarks/" in text


def test_there_are_config_files():
    assert len(FILES) >= 3


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
    ("fruits=3", "config.fruits: expected a list, got 3"),
])
def test_refused_overrides(assignment, message):
    with pytest.raises(BertJaxError) as error:
        config.override(Basket(), [assignment])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_damaged_files(tmp_path):
    with pytest.raises(BertJaxError, match="no such file"):
        config.load(Basket, tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"kind": "Basket", "cou')
    with pytest.raises(BertJaxError, match="not valid JSON"):
        config.load(Basket, tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(BertJaxError, match="expected an object for Basket"):
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


def test_micro_batches_must_share_the_batch():
    with pytest.raises(BertJaxError, match="batch_size 10 is not a multiple of accumulate 4"):
        TrainConfig(batch_size=10, accumulate=4)


def test_defaults_are_the_papers():
    assert AdamW() == AdamW(1e-4, 10_000, 0.01, 0.9, 0.999, 1e-6, 1.0, False)
    assert Lamb() == Lamb(1.76e-3, 3_125, 0.01, 0.9, 0.999, 1e-6, 1.0, True)
