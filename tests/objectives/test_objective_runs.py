"""StructBERT and ERNIE 2.0 in small, through the whole loop, on text that has an order, topics and capitals to be learnt."""

import pathlib

import jax
import numpy as np
import pytest

from bert_jax.data.pairs import PairSpec
from bert_jax.data.prepare import prepare
from bert_jax.data.reordered import Reordered
from bert_jax.data.store import TokenStore
from bert_jax.data.turns import marker
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import Capitalisation, Distance, MaskedLM, Reordering, Structural, TokenDocument, WordOrder
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask, Turn
from bert_jax.parallel.mesh import make_mesh
from bert_jax.training import train as train_module
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from bert_jax.training.pretrain import evaluate_checkpoint, load_config, pretrain
from bert_jax.training.record import read

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENCODER = EncoderConfig(
    vocab_size=96, embedding_width=32, hidden_width=32, layers=2, heads=4, ffn_width=64, max_length=32, dropout=0.0,
    attention_dropout=0.0, init_std=0.1, with_heads=("pooler", "mlm"),
)
ORDER = "the a cat dog bird sat ran sang".split()  # the first word of each sentence of a document, in this order
TOPICS = "mat road tree he she it said why".split()


@pytest.fixture(scope="module")
def ordered_store(tmp_path_factory, tiny_store):
    """Documents of eight sentences: a capitalised word that says which sentence it is, then the words of the topic."""
    folder, rng = tmp_path_factory.mktemp("ordered"), np.random.default_rng(0)
    with (folder / "text.txt").open("w") as file:
        for _ in range(400):
            words = rng.choice(TOPICS, 3, replace=False)
            for first in ORDER:
                file.write(f"{first.capitalize()} {' '.join(words[:2])} {' '.join(rng.permutation(words))} .\n")
            file.write("\n")
    prepare([folder / "text.txt"], folder / "store", TokenStore(tiny_store).tokenizer, sentences="line", heldout=0.1, workers=1,
            case=True, progress=False)
    return folder / "store"


@pytest.fixture
def run(monkeypatch, ordered_store, tmp_path):
    """``run(task, steps)``: held-out metrics and the training rows of the record."""
    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))

    def run(task, steps):
        experiment = Experiment(
            task=task, optimizer=AdamW(learning_rate=3e-3, warmup_steps=20),
            train=TrainConfig(steps=steps, batch_size=32, eval_every=steps, save_every=steps, log_every=10, eval_batches=4),
        )
        result = pretrain(experiment, ordered_store, tmp_path / "run")
        assert result.finished and result.step == steps
        return result.evaluation, [row for row in read(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]

    return run


@pytest.mark.parametrize("name", ["structbert_base", "ernie_base", "ernie_2_base"])
def test_recipes_can_be_traced_at_full_size(name):
    """Corruption, heads and losses of every turn fit together; no data is needed for that."""
    task = PretrainingTask(load_config(ROOT / "configs" / "pretrain" / f"{name}.py").task, None)
    params = jax.eval_shape(task.init, jax.random.key(0))
    for turn in task.config.all_turns:
        columns = {key for objective in turn.objectives for key in objective.needs}
        batch = {key: jax.ShapeDtypeStruct(*form) for key, form in turn.examples.layout(8, columns).items()}
        if turn.name:
            batch[marker(turn.name)] = jax.ShapeDtypeStruct((8, 0), bool)
        losses = jax.eval_shape(
            lambda params, batch, key: task.loss(params, task.corrupt(batch, key, None), key), params, batch, jax.random.key(0)
        )
        assert len(losses.terms) == len(turn.objectives) and all(name.startswith(turn.name) for name in losses.terms)


def last(rows, name):
    """Mean of a metric over the last five records that have it, fifty updates or the turn's share of them."""
    return np.mean([row[name] for row in rows if name in row][-5:])


@pytest.mark.slow
def test_structbert_learns(run, ordered_store, tmp_path):
    task = Pretraining(ENCODER, (WordOrder(rate=0.2), MaskedLM(), Structural()), PairSpec(32, "structural", 0.0))
    evaluation, rows = run(task, 400)
    assert rows[0]["structural_loss"] > 1.0 and rows[0]["word_order_loss"] > 3 and rows[0]["mlm_loss"] > 3
    assert last(rows, "structural_loss") < 0.8 and evaluation["structural_loss"] < 0.9  # a guess: 1.1
    assert evaluation["word_order_loss"] < 2 and evaluation["mlm_loss"] < 2
    again = evaluate_checkpoint(str(tmp_path / "run"), ordered_store, 32, 4)  # the heads of objectives come back too
    assert {name: again[name] for name in evaluation} == pytest.approx(evaluation, rel=1e-4)


@pytest.mark.slow
def test_ernie_2_learns(run, ordered_store, tmp_path):
    task = Pretraining(
        ENCODER, (MaskedLM(), Capitalisation(), TokenDocument()), PairSpec(32, "none", 0.0),
        (Turn("order", (MaskedLM(), Reordering(most=2)), Reordered(32, most=2)),
         Turn("far", (Distance(),), PairSpec(32, "distance", 0.0))),
    )
    evaluation, rows = run(task, 500)
    first = rows[0]
    assert first["capitalisation_loss"] > 0.2 and evaluation["capitalisation_loss"] < 0.1
    assert first["token_document_loss"] > 0.2 and evaluation["token_document_loss"] < 0.1
    assert first["order_reordering_loss"] > 0.9 and evaluation["order_reordering_loss"] < 0.8
    assert first["far_distance_loss"] > 0.9 and last(rows, "far_distance_loss") < 0.9
    again = evaluate_checkpoint(str(tmp_path / "run"), ordered_store, 32, 4)
    assert {name: again[name] for name in evaluation} == pytest.approx(evaluation, rel=1e-4)
    assert 0 < again["mlm_majority_baseline"] < 0.5
    for name in ("capitalisation", "token_document", "order_reordering", "far_distance"):
        assert 0 < again[f"{name}_majority_baseline"] < 1, name


@pytest.mark.slow
def test_a_run_goes_on_with_the_heads_of_its_objectives(run, ordered_store, tmp_path, caplog):
    """Another run that starts from it has them too; an objective that it did not have starts anew, with a warning."""
    task = Pretraining(ENCODER, (MaskedLM(), Structural()), PairSpec(32, "structural"))
    run(task, 22)
    objectives = (MaskedLM(), Structural(), Capitalisation())
    later = Pretraining(ENCODER, objectives, PairSpec(32, "structural"), init=str(tmp_path / "run"))
    params = PretrainingTask(later, TokenStore(ordered_store)).start(jax.random.key(5))
    fresh = PretrainingTask(task, TokenStore(ordered_store)).init(jax.random.key(5))
    assert "has no head capitalisation: it starts untrained" in caplog.text
    kernel = params["structural"]["dense"]["kernel"]
    assert kernel.shape == fresh["structural"]["dense"]["kernel"].shape
    assert not np.allclose(kernel, fresh["structural"]["dense"]["kernel"])
    again = PretrainingTask(later, TokenStore(ordered_store)).start(jax.random.key(6))
    assert np.array_equal(kernel, again["structural"]["dense"]["kernel"]), "what was trained depends on no seed"
