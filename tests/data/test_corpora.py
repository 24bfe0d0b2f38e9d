"""Real text from file to batch: a manual in English, prose in Chinese, novels."""

import numpy as np
import pytest

from bert_jax import tokenizers
from bert_jax.data.loader import train_batches
from bert_jax.data.pairs import PairBatches, PairSpec
from bert_jax.data.prepare import prepare
from bert_jax.data.sentences import split_punkt
from bert_jax.data.sources import Corpus
from bert_jax.data.store import TokenStore


@pytest.mark.parametrize(
    ("file", "vocabulary", "documents", "count"),
    [
        ("help-en-us.txt.gz", "bert-base-uncased-vocab.txt", "prefix:# doc:", 2515),
        ("zh.txt.gz", "bert-base-chinese-vocab.txt", "blank", 1797),
    ],
)
def test_from_text_to_batches(data_dir, tmp_path, file, vocabulary, documents, count):
    tokenizer = tokenizers.load(data_dir / "vocab" / vocabulary)
    some = tmp_path / "some.txt"  # an eighth of it, to keep the test short
    texts = list(Corpus([data_dir / "text" / file], documents=documents))[::8]
    assert len(texts) == -(-count // 8)
    some.write_text("\f".join(texts))
    prepare([some], tmp_path / "store", tokenizer, documents="formfeed", heldout=0.1, workers=2, progress=False)
    store = TokenStore(tmp_path / "store")
    split = store.split("train")
    assert len(split.documents) - 1 + len(store.split("heldout").documents) - 1 == len(texts)
    assert 5 < split.tokens / (len(split.sentences) - 1) < 60, "tokens of a sentence"
    raw = split.gather(split.documents[:-1], np.minimum(np.diff(split.documents), 1000))
    assert ((raw & (split.word_start - 1)) == tokenizer.unk_id).mean() < 0.01
    batch = next(train_batches(split, PairSpec(128, "nsp"), batch_size=64, seed=0))
    assert batch["attention_mask"].mean() > 0.6
    assert 10 <= batch["next_sentence_label"].sum() <= 54
    text = tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0]])
    assert text.startswith("[CLS]") and text.count("[SEP]") == 2 and "[UNK]" not in text


def test_novels(data_dir):
    book = next(iter(Corpus([data_dir / "text" / "books.txt.gz"], documents="formfeed")))
    assert book.startswith("# Title: Fathers and Sons")
    sentences = split_punkt(book)
    words = np.array([len(sentence.split()) for sentence in sentences])
    assert 4000 < len(sentences) < 7000
    assert 8 <= np.median(words) < 16 and np.quantile(words, 0.999) < 150
    assert '"Is that so?" queried the _barin_.' in sentences
    assert "".join("".join(sentences).split()) == "".join(book.split())


@pytest.mark.parametrize("kind", ["sop", "nsp", "none"])
def test_most_of_a_text_is_seen_every_epoch(data_dir, tmp_path, kind):
    """Measured on all novels at length 128: 73% (nsp) and 90% (sop, none) of the tokens; what a short, truncated or
    random example leaves out differs between epochs."""
    tokenizer = tokenizers.load(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
    books = iter(Corpus([data_dir / "text" / "books.txt.gz"], documents="formfeed"))
    (tmp_path / "two.txt").write_text("\f".join([next(books)[:300_000], next(books)[:300_000]]))
    options = dict(documents="formfeed", heldout=0, workers=1, progress=False)
    prepare([tmp_path / "two.txt"], tmp_path / "store", tokenizer, **options)
    split = TokenStore(tmp_path / "store").split("train")
    pairs = PairBatches(split, PairSpec(128, kind), seed=0)
    seen = np.zeros((4, split.tokens + 1), np.int64)
    for epoch in range(4):
        segments = pairs.segments(epoch * pairs.count + np.arange(pairs.count))
        for start, end in ((segments.a_start, segments.a_end), (segments.b_start, segments.b_end)):
            np.add.at(seen[epoch], start, 1)
            np.add.at(seen[epoch], end, -1)
    seen = np.cumsum(seen, axis=1)[:, :-1] > 0
    assert seen[0].mean() > {"nsp": 0.68, "sop": 0.86, "none": 0.86}[kind]
    assert seen.any(axis=0).mean() > 0.95
