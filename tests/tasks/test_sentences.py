"""Fine-tuning on labelled sentences: scores, and runs that learn."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers as library

from bert_jax.convert import hf
from bert_jax.errors import BertJaxError
from bert_jax.model import Model, load
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks import classification, regression
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.classification import Classification, ClassificationTask
from bert_jax.tasks.columns import Columns
from bert_jax.tasks.regression import Regression, RegressionTask
from bert_jax.tasks.tables import Table
from bert_jax.tasks.tagging import Tagging, TaggingTask
from bert_jax.tokenizers.pipeline import PipelineTokenizer
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from tests.tasks.tiny_tasks import finetune, gradient_of, make_batch, make_task, scattered
from tests.tiny_bert import get_config


def test_scores_are_those_of_the_libraries():
    rng = np.random.default_rng(0)
    sklearn = pytest.importorskip("sklearn.metrics")
    for classes, known in [(2, 2)] * 20 + [(3, 3), (5, 5), (7, 7), (7, 4)] * 5:  # at last three that never occur
        labels, logits = rng.integers(0, known, 50), rng.standard_normal((50, classes)).astype(np.float32)
        logits[:, known:] = -9
        found, predicted = classification.scores(logits, labels), logits.argmax(1)
        assert np.isclose(found["matthews"], sklearn.matthews_corrcoef(labels, predicted))
        assert np.isclose(found["accuracy"], sklearn.accuracy_score(labels, predicted))
        name, average = ("f1", "binary") if classes == 2 else ("f1_macro", "macro")
        assert np.isclose(found[name], sklearn.f1_score(labels, predicted, average=average))
        assert found.keys() == {"accuracy", name, "matthews"}
    for classes in (2, 3):
        logits = np.eye(classes)[[0, 0]]
        assert classification.scores(logits, np.array([0, 0]))["matthews"] == 0
        assert classification.scores(logits, np.array([0, 1]))["matthews"] == 0


def ranks(values):
    """From 1; equal values share the mean of theirs."""
    return (values[:, None] > values).sum(axis=1) + ((values[:, None] == values).sum(axis=1) + 1) / 2


def test_scores_of_values_are_those_of_the_libraries():
    rng = np.random.default_rng(0)
    sklearn = pytest.importorskip("sklearn.metrics")
    for digits in (6, 0) * 5:  # with ties, and almost without
        labels, noise = np.round(3 * rng.standard_normal((2, 40)), digits)
        predicted = np.float32(labels / 2 + noise + 1)
        found = regression.scores(predicted, labels)
        wanted = {"rmse": sklearn.root_mean_squared_error(labels, predicted), "r2": sklearn.r2_score(labels, predicted),
                  "pearson": np.corrcoef(predicted, labels)[0, 1],
                  "spearman": np.corrcoef(ranks(predicted), ranks(labels))[0, 1]}
        assert found == pytest.approx(wanted, rel=1e-6) and list(found) == list(wanted)
        assert (len(set(labels)) < 40) == (digits == 0)
    x = rng.standard_normal(30)
    assert np.isclose(regression.scores(x, x**3)["spearman"], 1) and regression.scores(x, x**3)["pearson"] < 1
    assert np.isclose(regression.scores(x + 2, x)["rmse"], 2)
    assert regression.scores(np.ones(30), x)["spearman"] == 0
    assert regression.scores(x, np.ones(30)) == {"rmse": pytest.approx(np.sqrt(np.mean((x - 1) ** 2))), "r2": 0, "pearson": 0,
                                                 "spearman": 0}
    assert regression.scores(-x, x)["r2"] < 0


@pytest.fixture(scope="module")
def start(tiny_store):
    """An encoder without training, with the tokenizer of the tiny store."""
    from bert_jax.data.store import TokenStore

    config = get_config().task.encoder
    return Model(api.init(config, jax.random.key(0)), config, TokenStore(tiny_store).tokenizer)


def tables(folder, label):
    """Pairs whose label is a function of whether the second begins with the first word of the first."""
    rng = np.random.default_rng(0)
    words = "cat dog bird mat road tree".split()
    for name, count in (("train", 256), ("dev", 70)):
        rows = ["first\tsecond\tlabel"]
        for _ in range(count):
            a, b = rng.choice(words, 2)
            rows.append(f"{a} sat on\t{b} ran\t{label(a, b)}")
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return [Table(str(folder / f"{name}.tsv"), ("first", "second"), "label") for name in ("train", "dev")]


def experiment(task, steps=60):
    return Experiment(
        task, AdamW(learning_rate=3e-3, warmup_steps=5, bias_correction=True),
        TrainConfig(steps=steps, batch_size=32, eval_every=steps, save_every=steps, log_every=20, eval_batches=None),
    )


@pytest.mark.parametrize("kind", ["Classification", "Regression"])
def test_loss_and_gradients_of_a_batch_are_those_of_transformers(kind, tmp_path):
    """Values less their mean and over their deviation, as the loss here has them."""
    torch = pytest.importorskip("torch", reason="parity needs torch and transformers (the torch extra)")
    transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers (the torch extra)")
    task = make_task(kind, dropout=0.0, attention_dropout=0.0)
    encoder, regression = task.config.encoder, kind == "Regression"
    params, batch = scattered(api.init(encoder, jax.random.key(0)), 0.2), make_batch(task)
    gradients, losses = gradient_of(task, params, batch)
    hf.export(params, encoder, task.tokenizer, tmp_path / "hf")
    model = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "hf", problem_type="regression" if regression else "single_label_classification", attn_implementation="eager"
    ).eval().double()
    labels = torch.tensor((batch["value"] - 3.0) / 0.5).double() if regression else torch.tensor(batch["label"]).long()
    assert len(set(labels.tolist())) == 2 and not batch["attention_mask"].all()
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask", "token_type_ids": "segment_ids"}
    theirs = model(**{name: torch.tensor(batch[ours]).long() for name, ours in names.items()}, labels=labels).loss
    theirs.backward()
    (value,) = (term.value for term in losses.terms.values())
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    ours, parameters = hf.to_tensors(gradients, encoder), dict(model.named_parameters())
    assert ours.keys() == parameters.keys()
    for name, parameter in parameters.items():
        gradient = parameter.grad.numpy()
        if name.endswith("word_embeddings.weight"):  # PyTorch never trains the padding piece; google-research/bert does
            gradient[task.tokenizer.pad_id] = ours[name][task.tokenizer.pad_id]
        # Softmax ignores what is the same at every position: the gradient of these is zero but for rounding.
        tolerance = 1e-6 if name.endswith("key.bias") else 1e-5 * np.abs(gradient).max()
        np.testing.assert_allclose(ours[name], gradient, atol=tolerance, rtol=0, err_msg=name)


def test_classification_learns(tmp_path, start):
    data, heldout = tables(tmp_path, lambda a, b: "red" if b < "d" else "blue")
    encoder = finetuned_encoder(start.config, ("red", "blue"), dropout=0.0, attention_dropout=0.0)
    config = Classification(encoder, "tiny", data, heldout, lengths=(8, 16))
    found = finetune(experiment(config), tmp_path / "run", start)
    assert found["accuracy"] > 0.95 and found["matthews"] > 0.9
    assert load(tmp_path / "run").config.labels == ("red", "blue")
    assert finetune(experiment(config), tmp_path / "run", start) == found  # over already: the same scores


def test_regression_learns(tmp_path, start):
    data, heldout = tables(tmp_path, lambda a, b: 10 + len(b))
    encoder = finetuned_encoder(start.config, ("length",), dropout=0.0, attention_dropout=0.0)
    config = Regression(encoder, "tiny", data, heldout, lengths=(8, 16), offset=13.0, scale=0.5)
    assert finetune(experiment(config), tmp_path / "run", start)["pearson"] > 0.95


def test_seeds_give_other_heads_and_the_checkpoint_s_encoder(tmp_path, start):
    data, heldout = tables(tmp_path, lambda a, b: "red")
    config = Classification(finetuned_encoder(start.config, ("red", "blue")), "tiny", data, heldout, lengths=(8, 16))
    task = ClassificationTask(config, start)
    one, two = (task.start(jax.random.key(seed)) for seed in (0, 1))
    assert not np.array_equal(one["classifier"]["dense"]["kernel"], two["classifier"]["dense"]["kernel"])
    assert np.array_equal(one["embeddings"]["token"], start.params["embeddings"]["token"]) and "mlm" not in one


def xlnet_s_tokenizer() -> PipelineTokenizer:
    """Words, with the special tokens behind them."""
    names = ["<pad>", "<unk>", "<cls>", "<sep>", "<mask>"]
    made = library.Tokenizer(library.models.WordLevel({word: k for k, word in enumerate([*names, "cat", "dog"])}, "<unk>"))
    made.pre_tokenizer, made.decoder = library.pre_tokenizers.Whitespace(), library.decoders.WordPiece()
    made.post_processor = library.processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2", pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2", special_tokens=[("<sep>", 3), ("<cls>", 2)]
    )
    return PipelineTokenizer(made.to_str().encode(), settings={f"{name.strip('<>')}_token": name for name in names})


def test_a_tokenizer_that_puts_the_special_tokens_last_is_warned_of(tmp_path, start, caplog):
    """The pooler reads the first token, as conversion of XLNet knows."""
    data, heldout = tables(tmp_path, lambda a, b: "red")
    config = Classification(finetuned_encoder(start.config, ("red", "blue")), "tiny", data, heldout, lengths=(8, 16))
    said = "tiny: a text does not begin with {}, and the pooler reads the first token, whichever it is"
    for tokenizer, expected in ((start.tokenizer, False), (xlnet_s_tokenizer(), True)):
        assert tokenizer.build([7])[0].tolist()[0 if expected else 1] == 7
        caplog.clear()
        ClassificationTask(config, start._replace(tokenizer=tokenizer)).start(jax.random.key(0))
        assert (said.format("<cls>") in caplog.messages) == expected and ("does not begin" in caplog.text) == expected
    tagging = Tagging(finetuned_encoder(start.config, ("N", "V"), ("tagger",)), "tiny", Columns("x"), Columns("x"), (8,))
    caplog.clear()
    TaggingTask(tagging, start._replace(tokenizer=xlnet_s_tokenizer())).start(jax.random.key(0))
    assert "does not begin" not in caplog.text, "it reads every token"


def test_what_is_refused(tmp_path, start):
    data, heldout = tables(tmp_path, lambda a, b: "red")
    encoder = finetuned_encoder(start.config, ("blue", "green"))
    config = Classification(encoder, "tiny", data, heldout, lengths=(8, 16))
    with pytest.raises(BertJaxError, match="label 'red', task.encoder.labels are blue, green"):
        next(ClassificationTask(config, start).train_batches(4, 0))
    value = Regression(finetuned_encoder(start.config, ("x",)), "tiny", data, heldout, lengths=(8, 16))
    with pytest.raises(BertJaxError, match="a regression needs numbers, not so rows 1, 2, .*, the first is 'red'"):
        next(RegressionTask(value, start).train_batches(4, 0))
    with pytest.raises(BertJaxError, match="from 1 to the position table, 16"):
        dataclasses.replace(config, lengths=(8, 64))
    with pytest.raises(BertJaxError, match="two or more"):
        Classification(finetuned_encoder(start.config, ("x",)), "tiny", data, heldout, lengths=(8,))
    with pytest.raises(BertJaxError, match="has no tokenizer"):
        ClassificationTask(config, start._replace(tokenizer=None))
    with pytest.raises(BertJaxError, match="with_heads must be"):
        Classification(EncoderConfig(), "tiny", data, heldout)
