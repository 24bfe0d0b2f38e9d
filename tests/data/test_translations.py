"""XLM's pairs of sentences and translations: aligned, positions from 0 again, every pair in every two languages."""

import numpy as np
import pytest

from bert_jax.data.translations import Translations
from bert_jax.errors import BertJaxError
from tests.data.test_pairs import within


@pytest.fixture
def parallel(make_split):
    """Documents in so many languages: sentence k of group i in language l has ids that say all three."""

    def make(languages: int = 3, groups: int = 6, sentences: int = 40, longest: int = 9):
        rng = np.random.default_rng(languages)
        documents = [
            [[1000 * (languages * group + language) + 10 + k] * int(rng.integers(1, longest + 1)) for k in range(sentences)]
            for group in range(groups) for language in range(languages)
        ]
        split = make_split(documents, vocab_size=300_000)
        split.languages, split.parallel = tuple("abcdefgh"[:languages]), languages
        split.document_language = np.tile(np.arange(languages), groups).astype(np.uint8)
        return split

    return make


def parts(row: np.ndarray) -> tuple[list[int], list[int]]:
    text = row.tolist()
    opened = text.index(2)
    closed = text.index(2, opened + 2)
    assert text[0] == 1 and text[opened + 1] == 2 and not any(text[closed + 1 :])
    return text[1:opened], text[opened + 2 : closed]


@pytest.mark.parametrize("languages", [2, 3])
def test_rows_are_aligned_sentences_of_two_languages(parallel, languages):
    split = parallel(languages)
    examples = Translations(64).open(split, seed=1, columns=["sentence_starts", "language_ids"])
    batch = examples.at(np.arange(3 * examples.count))
    seen = {}
    for row in range(3 * examples.count):
        one, two = (np.array(part) - 10 for part in parts(batch["input_ids"][row]))
        document = [set(part // 1000) for part in (one, two)]
        assert list(map(len, document)) == [1, 1]
        (a,), (b,) = document
        assert a // languages == b // languages and a != b, "not the same document in two languages"
        numbers = sorted(set(one % 1000))
        assert numbers == sorted(set(two % 1000)) == list(range(numbers[0], numbers[-1] + 1)), "not the same sentences"
        ids, n, m = batch["segment_ids"][row], len(one), len(two)
        expected = [a % languages] * (n + 2) + [b % languages] * (m + 2) + [0] * (60 - n - m)
        assert ids.tolist() == expected and batch["language_ids"][row].tolist() == expected
        positions = batch["position_ids"][row]
        assert positions[: n + 2].tolist() == list(range(n + 2)) and positions[n + 2 : n + m + 4].tolist() == list(range(m + 2))
        starts = np.flatnonzero(batch["sentence_starts"][row])
        assert starts.tolist() == [1 + int((one % 1000 < k).sum()) for k in numbers] + [
            n + 3 + int((two % 1000 < k).sum()) for k in numbers]
        for k in numbers:
            seen[min(a, b), max(a, b), k] = True
    assert len(seen) > 0.97 * 6 * 40 * (languages * (languages - 1) // 2), "three epochs have nearly every pair"


def test_an_epoch_has_nearly_every_pair_once(parallel):
    split = parallel(2, groups=10, sentences=400)
    examples = Translations(128).open(split, seed=1)
    segments = examples.segments(np.arange(examples.count))
    start, end = (np.searchsorted(split.sentences, side.min(axis=1)) for side in (segments.starts, segments.ends))
    taken = np.zeros(len(split.sentences) + 1, int)
    np.add.at(taken, start, 1)
    np.add.at(taken, end, -1)
    taken = np.cumsum(taken)[:-2].reshape(10, 2, 400)[:, 0]
    assert (taken == 1).mean() > 0.9 and (taken > 1).mean() < 0.02
    assert segments.lengths.sum(axis=1).mean() > 0.85 * 124
    many = examples.segments(np.arange(30 * examples.count)).starts
    assert within(int((many[:, 0] < many[:, 1]).sum()), len(many), 0.5), "either language comes first"


def test_without_language_segments(parallel):
    examples = Translations(64, language_segments=False).open(parallel(3), seed=1)
    batch = examples.at(np.arange(50))
    for row in range(50):
        one, two = parts(batch["input_ids"][row])
        n, m = len(one) + 2, len(two) + 2
        assert batch["segment_ids"][row].tolist() == [0] * n + [1] * m + [0] * (64 - n - m)


def test_a_pair_that_is_too_long_loses_the_end_of_the_longer_text(make_split):
    split = make_split([[list(range(10, 60))], [list(range(100, 104))], [list(range(200, 230))], [list(range(300, 330))]])
    split.languages, split.parallel, split.document_language = ("a", "b"), 2, np.array([0, 1, 0, 1], np.uint8)
    examples = Translations(24).open(split, seed=1)
    rows = {tuple(sorted(map(tuple, parts(row)))) for row in examples.at(np.arange(2 * examples.count))["input_ids"]}
    assert (tuple(range(10, 26)), tuple(range(100, 104))) in rows
    assert (tuple(range(200, 210)), tuple(range(300, 310))) in rows and len(rows) == 2


def test_refusals(random_split, parallel):
    with pytest.raises(BertJaxError, match="Translations need documents in several languages.*--parallel"):
        Translations(64).open(random_split(), seed=0)
    split = parallel(2)
    split.sentences = np.delete(split.sentences, 3)
    with pytest.raises(BertJaxError, match="parallel documents 0 and after have 39, 40 sentences"):
        Translations(64).open(split, seed=0)
    assert "position_ids" in Translations().layout(2, ())
