"""A run of our own pre-training, in the hands of others: transformers, sentence-transformers, and a second run here."""

from unittest import mock

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import cli
from bert_jax.embedding.sentence import embed
from bert_jax.embedding.settings import SentenceSettings
from bert_jax.models import api
from bert_jax.parallel.mesh import make_mesh
from bert_jax.training import train as train_module
from bert_jax.training.record import read
from tests.conftest import ROOT

torch = pytest.importorskip("torch", reason="the others are PyTorch (the torch extra)")
transformers = pytest.importorskip("transformers", reason="the others are PyTorch (the torch extra)")

TEXTS = ["the cat sat on the mat.", "a dog", "it ran and sang in the tree, and the bird said no"]


def pretrain(store, workdir, *arguments, steps=6):
    brief = [
        f"train.steps={steps}", "train.save_every=3", "train.log_every=1", "train.eval_batches=1", "optimizer.warmup_steps=1",
        "optimizer.learning_rate=1e-3", "task.encoder.dropout=0.0", "task.encoder.attention_dropout=0.0",
    ]  # fmt: skip
    sets = [word for assignment in brief for word in ("--set", assignment)]
    config = str(ROOT / "tests" / "tiny_bert.py")
    words = ["pretrain", "--config", config, "--data", str(store), "--workdir", str(workdir), *sets, *arguments]
    with mock.patch.object(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1])):
        assert cli.main(words) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_store):
    folder = tmp_path_factory.mktemp("hand-over") / "run"
    pretrain(tiny_store, folder)
    return folder


def test_transformers_opens_it(run, tmp_path):
    for step in (3, 6):
        out = tmp_path / str(step)
        assert cli.main(["convert", "--from", f"{run}@{step}", "--to", str(out)]) == 0
        model, tokenizer = bert_jax.load(f"{run}@{step}"), transformers.AutoTokenizer.from_pretrained(out)
        theirs = transformers.AutoModelForPreTraining.from_pretrained(out).eval()
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            assert ids == model.tokenizer.build(model.tokenizer.encode(text).ids)[0].tolist()
            with torch.inference_mode():
                expected = theirs(torch.tensor([ids]))
            found = jax.jit(api.apply, static_argnums=1)(model.params, model.config, {"input_ids": np.array([ids])}).logits
            np.testing.assert_allclose(found["mlm"], expected.prediction_logits.numpy(), atol=1e-5, rtol=0)
            np.testing.assert_allclose(found["pair"], expected.seq_relationship_logits.numpy(), atol=1e-5, rtol=0)


def test_sentence_transformers_opens_it(run, tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="the peer is sentence-transformers (the dev extra)")
    assert cli.main(["convert", "--from", str(run), "--to", str(tmp_path / "out"), "--format", "sentence-transformers"]) == 0
    model = bert_jax.load(run)
    settings = SentenceSettings(max_length=model.config.max_length)
    found = embed(model.params, model.config, model.tokenizer, settings, TEXTS, progress=False)
    theirs = library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, theirs, atol=1e-5, rtol=0)
    assert bert_jax.load(tmp_path / "out").sentence == settings


@pytest.mark.slow
def test_it_comes_back_and_goes_on(run, tiny_store, tmp_path):
    """Through PyTorch's own save: the second run begins where the first ended, and ends lower."""
    assert cli.main(["convert", "--from", str(run), "--to", str(tmp_path / "there")]) == 0
    theirs = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "there")
    theirs.save_pretrained(tmp_path / "back")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "there").save_pretrained(tmp_path / "back")
    came, went = bert_jax.load(tmp_path / "back"), bert_jax.load(run)
    assert came.config == went.config and came.tokenizer.hash == went.tokenizer.hash
    jax.tree.map(np.testing.assert_array_equal, came.params, jax.tree.map(np.asarray, went.params))
    pretrain(tiny_store, tmp_path / "more", "--init", str(tmp_path / "back"), steps=30)
    first, more = (
        [row["loss"] for row in read(folder / "metrics.jsonl") if row["kind"] == "train"] for folder in (run, tmp_path / "more")
    )
    assert abs(more[0] - first[-1]) < 0.5 < first[0] - more[0]
    assert np.mean(more[-5:]) < np.mean(more[:5]) - 0.1
