"""RoBERTa's and XLM's text without pairs: what is whole, what is separated, and that nothing comes twice."""

import numpy as np
import pytest

from bert_jax.data.streams import Streams
from bert_jax.errors import BertJaxError


def texts(batch) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


@pytest.mark.parametrize("length", [8, 30, 128])
@pytest.mark.parametrize("count", [1, 7, 60])
def test_every_token_of_a_stream_is_in_exactly_one_example_an_epoch(random_split, length, count):
    split = random_split(count=count, seed=length, sentence=(1, 6), shards=min(count, 3))
    stream = Streams(length, unit="token").open(split, seed=3)
    for epoch in range(3):
        batch = stream.at(epoch * stream.count + np.arange(stream.count))
        ids = batch["input_ids"][batch["input_ids"] >= 10]
        np.testing.assert_array_equal(np.sort(ids), np.arange(10, 10 + split.tokens))
        assert not batch["segment_ids"].any()


@pytest.mark.parametrize("unit", ["token", "sentence"])
def test_documents_follow_each_other_with_a_separator(random_split, unit):
    split = random_split(count=200, seed=1, sentence=(1, 5))
    stream = Streams(64, unit=unit).open(split, seed=3)
    crossed = 0
    for row in texts(stream.at(np.arange(2 * stream.count))):
        assert row[0] == 1 and row[-1] == 2 and 1 not in row[1:]
        inner = [place for place, piece in enumerate(row[:-1]) if piece == 2]
        tokens = np.array([piece - 10 for piece in row if piece >= 10])
        np.testing.assert_array_equal(np.diff(tokens), 1, "not contiguous")
        ends = [row[place + 1] - 10 for place in inner]
        document_starts = split.documents[(split.documents > tokens[0]) & (split.documents <= tokens[-1])]
        np.testing.assert_array_equal(ends, document_starts)
        crossed += len(ends) > 0
    assert crossed > stream.count // 4


def test_streams_are_full(random_split):
    split = random_split(count=300, sentence=(1, 20))
    stream = Streams(64, unit="token").open(split, seed=3)
    mask = stream.at(np.arange(stream.count))["attention_mask"]
    assert (~mask[:, -2:]).any(axis=1).sum() <= 2 or mask.mean() > 0.97


def test_sentences_are_whole_and_come_at_most_once(random_split):
    split = random_split(count=150, sentence=(1, 12))
    stream = Streams(64).open(split, seed=5)
    coverage = []
    for epoch in range(8):
        segments = stream.segments(epoch * stream.count + np.arange(stream.count))
        there = segments.lengths > 0
        for sides in (segments.starts, segments.ends):
            assert (~np.isin(sides[there], split.sentences)).sum() <= 1, "only the last sentence may be cut"
        taken = np.zeros(split.tokens + 1, int)
        np.add.at(taken, segments.starts.ravel(), 1)
        np.add.at(taken, segments.ends.ravel(), -1)
        taken = np.cumsum(taken)[:-1]
        assert taken.max() == 1
        coverage.append(taken > 0)
    assert np.mean(coverage) > 0.88
    assert np.any(coverage, axis=0).all(), "the cuts move"


def test_a_sentence_longer_than_an_example_is_cut(make_split):
    split = make_split([[list(range(10, 1010))], [list(range(1010, 1500))]])
    stream = Streams(32).open(split, seed=0)
    for epoch in range(2):
        batch = stream.at(epoch * stream.count + np.arange(stream.count))
        text = batch["input_ids"][batch["input_ids"] >= 10]
        assert len(np.unique(text)) == len(text) and len(text) > 1440


@pytest.mark.parametrize("unit", ["token", "sentence"])
def test_no_example_mixes_languages(random_split, unit):
    split = random_split(count=90, sentence=(1, 6))
    split.languages, split.document_language = ("a", "b", "c"), np.tile([0, 2], 45)
    stream = Streams(64, unit=unit).open(split, seed=3, columns=["language_ids"])
    batch, segments = stream.at(np.arange(stream.count)), stream.segments(np.arange(stream.count))
    document = np.searchsorted(split.documents, segments.starts, side="right") - 1
    language = np.where(segments.lengths > 0, split.document_language[np.minimum(document, 89)], -1)
    assert set(language[:, 0]) == {0, 2}
    assert ((language == language[:, :1]) | (language < 0)).all()
    np.testing.assert_array_equal(batch["language_ids"], np.where(batch["attention_mask"], language[:, :1], 0))
    with_ids = Streams(64, unit=unit, language_segments=True).open(split, seed=3).at(np.arange(stream.count))
    np.testing.assert_array_equal(with_ids["segment_ids"], batch["language_ids"])
    if unit == "token":
        ids = batch["input_ids"][batch["input_ids"] >= 10]
        np.testing.assert_array_equal(np.sort(ids), np.arange(10, 10 + split.tokens))


def test_refusals(random_split):
    with pytest.raises(BertJaxError, match="does not say which language.*language_segments"):
        Streams(64, language_segments=True).open(random_split(), seed=0)
    with pytest.raises(BertJaxError, match="unit='word': use one of sentence, token"):
        Streams(64, unit="word")
    assert "context_ids" not in Streams().provides and "sentence_starts" in Streams().provides
