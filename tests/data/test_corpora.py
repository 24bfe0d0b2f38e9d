"""Real text from file to batch: a manual in English, prose in Chinese, novels."""

import numpy as np
import pytest

from bert_jax import tokenizers
from bert_jax.data.loader import train_batches
from bert_jax.data.pairs import PairSpec
from bert_jax.data.prepare import prepare
from bert_jax.data.sentences import split_punkt
from bert_jax.data.sources import Corpus
from bert_jax.data.store import TokenStore
from bert_jax.data.streams import Streams
from bert_jax.data.translations import Translations


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
    pairs = PairSpec(128, kind).open(split, seed=0)
    seen = np.zeros((4, split.tokens + 1), np.int64)
    for epoch in range(4):
        segments = pairs.segments(epoch * pairs.count + np.arange(pairs.count))
        np.add.at(seen[epoch], segments.starts.ravel(), 1)
        np.add.at(seen[epoch], segments.ends.ravel(), -1)
    seen = np.cumsum(seen, axis=1)[:, :-1] > 0
    assert seen[0].mean() > {"nsp": 0.68, "sop": 0.86, "none": 0.86}[kind]
    assert seen.any(axis=0).mean() > 0.95


def test_translations_of_a_manual_and_of_a_treebank(data_dir, tmp_path):
    """Real parallel text: lines of a manual in three languages, and the 1,000 sentences of PUD in two."""
    tokenizer = tokenizers.load(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
    specs = []
    for name, language in (("en-us", "en"), ("de", "de"), ("fr", "fr")):
        pages = list(Corpus([data_dir / "text" / f"help-{name}.txt.gz"], documents="prefix:# doc:"))[:300]
        specs.append(f"{language}={tmp_path / language}.txt")
        (tmp_path / f"{language}.txt").write_text("".join(f"# doc: {k}\n{page}\n" for k, page in enumerate(pages)))
    options = dict(parallel=True, heldout=0, workers=1, progress=False)
    prepare(specs, tmp_path / "manual", tokenizer, documents="prefix:# doc:", **options)
    split = TokenStore(tmp_path / "manual").split("train")
    examples = Translations(128).open(split, seed=0)
    segments = examples.segments(np.arange(examples.count))
    lengths = segments.lengths
    assert set(map(tuple, np.sort(segments.ids, axis=1))) == {(0, 1), (0, 2), (1, 2)}
    assert 0.3 < np.corrcoef(lengths.T)[0, 1], "a translation is about as long as its original"
    assert np.median(lengths.max(axis=1) / lengths.min(axis=1)) < 1.6
    batch = examples.at(np.arange(64))
    for row in range(64):
        shown = tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row]])
        assert shown.startswith("[CLS]") and shown.count("[SEP]") == 3

    for language in ("en", "de"):
        lines = (data_dir / "syntax" / "pud" / f"{language}_pud-ud-test.conllu").read_text().splitlines()
        text = [line.removeprefix("# text = ") for line in lines if line.startswith("# text = ")]
        assert len(text) == 1000
        (tmp_path / f"{language}.pud").write_text("\n".join(text) + "\n")
    specs = [f"{language}={tmp_path / language}.pud" for language in ("en", "de")]
    prepare(specs, tmp_path / "pud", tokenizer, documents="file", **options)
    split = TokenStore(tmp_path / "pud").split("train")
    examples = Translations(256).open(split, seed=0)
    assert examples.count == -(-split.tokens // 252) + 1  # text of 32 cells or more has one to spare
    assert examples.at(np.arange(examples.count))["attention_mask"].mean() > 0.75


def test_capitals_and_languages_of_real_text(data_dir, tmp_path):
    """The case channel reaches the batch on the pieces of the words; shares of languages hold to the example."""
    tokenizer = tokenizers.load(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
    book = next(iter(Corpus([data_dir / "text" / "books.txt.gz"], documents="formfeed")))[:200_000]
    (tmp_path / "one.txt").write_text(book[:160_000])
    (tmp_path / "two.txt").write_text(book[160_000:])
    specs = [f"one={tmp_path / 'one.txt'}", f"two={tmp_path / 'two.txt'}"]
    prepare(specs, tmp_path / "store", tokenizer, documents="file", heldout=0, workers=1, progress=False, case=True)
    split = TokenStore(tmp_path / "store").split("train")
    columns = ["capitalised", "sentence_starts", "language_ids"]
    examples = Streams(64, language_exponent=0.5).open(split, seed=0, columns=columns)
    batch = examples.at(np.arange(examples.count))
    np.testing.assert_array_equal(np.bincount(batch["language_ids"][:, 1]), examples.grid.slots)
    assert examples.grid.slots[0] / examples.grid.slots[1] == pytest.approx(2, rel=0.1)
    assert 0.05 < batch["capitalised"][batch["attention_mask"]].mean() < 0.25
    assert batch["capitalised"][batch["sentence_starts"] & batch["word_starts"]].mean() > 0.5
    assert not batch["capitalised"][~batch["attention_mask"]].any()
