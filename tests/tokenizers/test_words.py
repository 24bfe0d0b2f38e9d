"""Word by word the ids are those of whole texts, whatever the text, and what is remembered stays small."""

import concurrent.futures
import csv
import itertools
import random

import numpy as np
import pytest

from bert_jax import tokenizers
from bert_jax.errors import BertJaxError
from bert_jax.tokenizers import words
from bert_jax.tokenizers.wordpiece import WordPieceTokenizer
from bert_jax.tokenizers.words import MARKS, WordMemory

RULES = [
    dict(zip(("lowercase", "strip_accents", "split_chinese"), values, strict=True))
    for values in itertools.product([True, False], repeat=3)
]
# Blanks that are none to everybody, characters that are dropped, that join what stands before them or become several.
STRANGE = (
    "\x00\x0b\x0c\r\t\x1c\x1f\x85\xa0\xad\u1680\u2009\u200b\u200d\u2028\u3000\ufeff\ufffd\ue000\u0338\u0301\u0345\u0600\u093e"
    "≠ßẞΣςİǆﬁ①Åé각が\uf900\U00020000\U0001f600"
)


def expected(tokenizer, texts) -> tuple[list[int], list[int]]:
    encoded = tokenizer.encode_batch(texts)
    return [i for ids in encoded for i in ids.tolist()], list(map(len, encoded))


def assert_same(encode, tokenizer, texts):
    ids, lengths = encode(texts)
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int64)
    wanted_ids, wanted_lengths = expected(tokenizer, texts)
    assert lengths.tolist() == wanted_lengths
    assert ids.tolist() == wanted_ids


@pytest.fixture(scope="module", params=["bert-base-uncased-vocab.txt", "bert-base-chinese-vocab.txt"])
def pieces(request, data_dir):
    return tokenizers.load(data_dir / "vocab" / request.param).pieces


@pytest.mark.parametrize("rules", RULES)
def test_real_text(pieces, rules, data_dir):
    tokenizer = WordPieceTokenizer(pieces, **rules)
    encode = tokenizer.encoder()
    assert isinstance(encode, WordMemory)
    for language in ("en", "de", "zh"):
        with open(data_dir / f"sts/stsb/stsb-{language}-test.csv", encoding="utf-8", newline="") as file:
            texts = [text for row in csv.reader(file) for text in row[:2]]
        assert_same(encode, tokenizer, texts[:500])
        assert_same(encode, tokenizer, ["\n".join(texts[500:600]), "", "\n", *texts[600:]])


@pytest.mark.parametrize("rules", RULES)
def test_any_characters(pieces, rules):
    tokenizer = WordPieceTokenizer(pieces, **rules)
    encode = tokenizer.encoder()
    draw = random.Random(0)
    usual = "abcxyzABÇüμ我们的。 \n" + MARKS
    anything = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    for alphabet in (usual, usual + STRANGE * 3, anything, [*anything[:0x500], *usual * 20]):
        texts = ["".join(draw.choices(alphabet, k=draw.randrange(30))) for _ in range(2000)]
        assert_same(encode, tokenizer, texts)
    assert_same(encode, tokenizer, ["a" * 101, "a" * 100 + ",b", "[MASK] [unk]", " ", "", "x" * 100_000])
    assert [part.tolist() for part in encode([])] == [[], []]


def remembering(log):
    """A memory over a toy whose ids of a word are the codes of its letters."""

    def encode_batch(texts):
        log.extend(texts)
        if "bad" in texts:
            raise BertJaxError("bad")
        return [np.array([ord(char) for char in text if char.isalpha()], np.int32) for text in texts]

    return WordMemory(encode_batch, ideographs=True)


def test_a_word_is_encoded_once_until_all_are_forgotten(monkeypatch):
    log = []
    encode = remembering(log)
    for _ in range(2):
        assert encode(["ab c,ab", "c"])[1].tolist() == [5, 1]
    assert sorted(log) == ["", "\n", ",", "ab", "c"]
    monkeypatch.setattr(words, "ROOM", 50_000)
    counts = []
    for number in range(100):
        ids, lengths = encode([f"ab {'x' * (number + 1)}{chr(0x4E00 + number)} " * 20, "c"])
        assert lengths.tolist() == [20 * (number + 4), 1] and ids[-1] == ord("c")
        counts.append(log.count("ab"))
    assert 1 < counts[-1] < 10


def test_what_failed_is_not_remembered_as_empty():
    encode = remembering([])
    with pytest.raises(BertJaxError, match="bad"):
        encode(["good bad"])
    assert encode(["good"])[1].tolist() == [4]


def test_threads_share_it(monkeypatch, pieces):
    monkeypatch.setattr(words, "ROOM", 20_000)
    tokenizer = WordPieceTokenizer(pieces)
    encode = tokenizer.encoder()
    texts = [[f"word{n} of number {n}" for n in range(start, start + 20)] for start in range(0, 2000, 20)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for made, given in zip(pool.map(encode, texts), texts, strict=True):
            assert [part.tolist() for part in made] == list(expected(tokenizer, given))
