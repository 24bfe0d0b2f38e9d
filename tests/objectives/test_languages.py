"""Translation language modelling and language sampling from text to update, on a parallel store made here."""

import dataclasses

import jax
import numpy as np
import pytest

from bert_jax.data.prepare import prepare
from bert_jax.data.store import TokenStore
from bert_jax.data.streams import Streams
from bert_jax.data.translations import Translations
from bert_jax.errors import BertJaxError
from bert_jax.objectives import MaskedLM
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask, Turn
from tests.conftest import WORDS
from tests.tiny_bert import get_config

ENCODER = dataclasses.replace(get_config().task.encoder, segments=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_store):
    """Documents of lines in two languages, the second the first backwards."""
    folder, rng = tmp_path_factory.mktemp("parallel"), np.random.default_rng(0)
    documents = [[rng.choice(WORDS, rng.integers(2, 6)) for _ in range(rng.integers(2, 6))] for _ in range(60)]
    for name, order in (("en", 1), ("ne", -1)):
        text = "\n\n".join("\n".join(" ".join(line[::order]) for line in document) for document in documents)
        (folder / f"{name}.txt").write_text(text + "\n")
    tokenizer = TokenStore(tiny_store).tokenizer
    sources = [f"{name}={folder / name}.txt" for name in ("en", "ne")]
    prepare(sources, folder / "store", tokenizer, parallel=True, heldout=0.2, workers=1, progress=False)
    return TokenStore(folder / "store")


def task(store, encoder=ENCODER, examples=Translations(16), turns=()):  # noqa: B008 (frozen)
    return PretrainingTask(Pretraining(encoder, (MaskedLM(),), examples, turns), store)


def test_translations_restart_positions_and_say_languages(store):
    batch = next(task(store).train_batches(32, 0))
    ids, segments, positions = batch["input_ids"], batch["segment_ids"], batch["position_ids"]
    one, other = 0, 0
    for row in range(32):
        real = batch["attention_mask"][row]
        second = np.flatnonzero(positions[row, 1:][real[1:]] == 0)[0] + 1
        assert (np.diff(positions[row, :second]) == 1).all()
        one, other = segments[row, 0], segments[row, second]
        assert {int(one), int(other)} == {0, 1}
        special = np.isin(ids[row], [2, 3])
        a, b = (ids[row, part][~special[part] & real[part]] for part in (slice(0, second), slice(second, None)))
        assert sorted(a) == sorted(b), "the same words in another order"


def test_an_update_of_both_turns(store):
    made = task(store, turns=(Turn("streams", (MaskedLM(),), Streams(16, language_segments=True, language_exponent=0.7)),))
    params, batches = jax.jit(made.init)(jax.random.key(0)), made.train_batches(8, 0)
    names = set()

    @jax.jit
    def loss(params, batch):
        return made.loss(params, made.corrupt(batch, jax.random.key(1), jax.numpy.int32(0)), jax.random.key(2))

    for _ in range(2):
        losses = loss(params, jax.tree.map(jax.numpy.asarray, next(batches)))
        assert all(np.isfinite(float(term.value)) for term in losses.terms.values())
        names |= losses.terms.keys()
    assert names == {"mlm_loss", "streams_mlm_loss"}


def test_a_model_with_too_few_segments_is_refused(store):
    with pytest.raises(BertJaxError, match="the data has 2, the model 1 segments: set task.encoder.segments=2"):
        task(store, dataclasses.replace(ENCODER, segments=1))
    task(store, dataclasses.replace(ENCODER, segments=1), Streams(16))  # no languages in its segment ids


def test_text_that_is_not_parallel_is_refused(tiny_store):
    with pytest.raises(BertJaxError, match="--parallel"):
        next(task(TokenStore(tiny_store)).train_batches(4, 0))
