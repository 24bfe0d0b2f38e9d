"""What the loader's benchmark measures, on a small store."""

import loader
import numpy as np
import pytest

from bert_jax.data.prepare import prepare
from bert_jax.data.store import TokenStore
from bert_jax.tokenizers import train
from tests.conftest import WORDS


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_corpus):
    folder = tmp_path_factory.mktemp("loader")
    write_corpus(folder / "a.txt", 60)
    tokenizer = train("wordpiece", [" ".join(WORDS), (folder / "a.txt").read_text()], 60)
    prepare([folder / "a.txt"], folder / "store", tokenizer, heldout=0.2, progress=False)
    return TokenStore(folder / "store")


@pytest.fixture(scope="module")
def split(store):
    return store.split("train")


@pytest.mark.parametrize("name", loader.KINDS)
def test_every_kind_has_a_rate(split, name):
    row = loader.measure(name, split, loader.KINDS[name](64), 4, turns=3, seconds=0.001)
    assert len(row["turns"]) == 3 and min(row["turns"]) <= row["sequences_per_second"] <= max(row["turns"])
    assert row["examples"] == name and 0 < row["filled"] <= 1 and row["batch_ms_of_a_core"] > 0


def test_packed_rows_are_fuller(split):
    filled = {name: loader.measure(name, split, loader.KINDS[name](64), 4, 1, 0.01)["filled"]
              for name in ("nsp", "packed nsp")}
    assert filled["packed nsp"] > filled["nsp"]


def test_batches_are_watched_where_the_loop_takes_them():
    class Batches:
        epoch = 7

        def __next__(self):
            return {"input_ids": np.zeros(1)}

    watched = loader.Watched(Batches())
    for _ in range(3):
        assert next(watched)["input_ids"].shape == (1,)
    assert watched.epoch == 7 and len(watched.asked) == len(watched.given) == 3
    assert all(asked <= given for asked, given in zip(watched.asked, watched.given, strict=True))


@pytest.mark.slow
def test_a_run_is_watched_after_it_has_compiled(store, monkeypatch):
    monkeypatch.setitem(loader.step.MODELS, "tiny", (1, 64, 8))
    monkeypatch.setattr(loader, "WARM", 1)
    row = loader.waiting(store, "tiny", 2)
    assert len(row["updates_ms"]) == len(row["waits_ms"]) == 2 and (row["batch_size"], row["length"]) == (8, 128)
    assert all(0 <= wait < update for wait, update in zip(row["waits_ms"], row["updates_ms"], strict=True))
    assert row["share"] == pytest.approx(sum(row["waits_ms"]) / sum(row["updates_ms"]), abs=0.01)
