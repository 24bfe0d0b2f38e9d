"""Word by word the ids are those of whole texts, whatever the text, and what is remembered stays small."""

import concurrent.futures
import csv
import itertools
import random

import numpy as np
import pytest
import sentencepiece as sentencepiece_library
import tokenizers as library

from bert_jax import tokenizers
from bert_jax.errors import BertJaxError
from bert_jax.tokenizers import words
from bert_jax.tokenizers.pipeline import PipelineTokenizer
from bert_jax.tokenizers.unigram import SentencePieceTokenizer
from bert_jax.tokenizers.wordpiece import WordPieceTokenizer
from bert_jax.tokenizers.words import BERT_WORDS_AND_IDEOGRAPHS, MARKS, WordMemory

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


def wordpiece(data_dir, vocabulary, **rules):
    return WordPieceTokenizer(tokenizers.load(data_dir / "vocab" / vocabulary).pieces, **rules)


def sentencepiece(data_dir, **rules):
    return SentencePieceTokenizer((data_dir / "vocab/albert-base-v2-spiece.model").read_bytes(), **rules)


def byte_level(data_dir, normalizer=None, added=(), **rules):
    """RoBERTa's form, learnt from German and English sentences."""
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(**rules)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=3000, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    blanks = ["a   b  \t c\n\n  d\t \te"] * 500  # become pieces
    made.train_from_iterator([*sentences(data_dir, "en"), *sentences(data_dir, "de"), *blanks], trainer)
    made.add_special_tokens([library.AddedToken("<mask>", lstrip=True)])
    made.add_tokens(list(added))
    if normalizer:
        made.normalizer = normalizer
    return PipelineTokenizer(made.to_str().encode())


def sentences(data_dir, language) -> list[str]:
    with open(data_dir / f"sts/stsb/stsb-{language}-test.csv", encoding="utf-8", newline="") as file:
        return [text for row in csv.reader(file) for text in row[:2]]


def every(**rules) -> list[dict]:
    """All choices of the rules' values."""
    return [dict(zip(rules, values, strict=True)) for values in itertools.product(*rules.values())]


KINDS = [
    *((wordpiece, rules) for rules in every(
        vocabulary=["bert-base-uncased-vocab.txt", "bert-base-chinese-vocab.txt"], lowercase=[True, False],
        strip_accents=[True, False], split_chinese=[True, False],
    )),
    *((sentencepiece, rules) for rules in every(lowercase=[True, False], strip_accents=[True, False])),
    *((byte_level, rules) for rules in every(add_prefix_space=[True, False])),
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0].__name__}-{'-'.join(map(str, kind[1].values()))}")
def tokenizer(request, data_dir):
    make, rules = request.param
    made = make(data_dir, **rules)
    assert isinstance(made.encoder(), WordMemory)
    return made


def test_real_text(tokenizer, data_dir):
    encode = tokenizer.encoder()
    for language in ("en", "de", "zh"):
        texts = sentences(data_dir, language)
        assert_same(encode, tokenizer, texts[:500])
        assert_same(encode, tokenizer, ["\n".join(texts[500:550]), "", "\n", *texts[600:1000], "  ".join(texts[550:600])])


def test_any_characters(tokenizer):
    encode = tokenizer.encoder()
    draw = random.Random(0)
    usual = "abcxyzABÇüμ我们的。 \n'" + MARKS
    anything = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    mixed = [*anything[:0x2100], *" " * 2000], [*anything[:0x500], *usual * 20]
    for alphabet in (usual, "ab'sЙω ,  \t", usual + STRANGE * 3, anything, *mixed):
        texts = ["".join(draw.choices(alphabet, k=draw.randrange(30))) for _ in range(1000)]
        assert_same(encode, tokenizer, texts)
    assert_same(encode, tokenizer, ["a" * 101, "a" * 100 + ",b", "[MASK] [unk] <mask> <pad>", " ", "", "x" * 10_000])
    assert [part.tolist() for part in encode([])] == [[], []]


def test_any_character_between_blanks(tokenizer):
    texts = [f"a {chr(code)} b{chr(code)} {chr(code)}c" for code in range(0x3100)]
    assert_same(tokenizer.encoder(), tokenizer, texts)


def test_a_rule_of_sentencepiece_for_a_blank_and_the_accent_on_it(tmp_path):
    """Such clusters of characters may have rules of their own, and then two words become one."""
    (tmp_path / "rules.tsv").write_text("20 301\t78\n")
    sentencepiece_library.SentencePieceTrainer.train(
        sentence_iterator=iter(["abc xyz bxc"] * 20), model_prefix=str(tmp_path / "model"), vocab_size=13, pad_id=0, unk_id=1,
        bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"], minloglevel=2,
        normalization_rule_tsv=str(tmp_path / "rules.tsv"),
    )
    tokenizer = SentencePieceTokenizer((tmp_path / "model.model").read_bytes(), strip_accents=False)
    assert [tokenizer.piece(i) for i in tokenizer.encode("b \u0301c").ids] == ["▁bxc"]
    assert_same(tokenizer.encoder(), tokenizer, ["b \u0301c", "b c"])


@pytest.mark.parametrize("other", [
    dict(use_regex=False), dict(normalizer=library.normalizers.NFKC()), dict(added=["der a", "plane is"]),
], ids=str)
def test_where_words_do_not_decide_texts_are_encoded_whole(data_dir, other):
    tokenizer = byte_level(data_dir, **other)
    encode = tokenizer.encoder()
    assert not isinstance(encode, WordMemory)
    assert_same(encode, tokenizer, sentences(data_dir, "en")[:100])


def remembering(log):
    """A memory over a toy whose ids of a word are the codes of its letters."""

    def encode_toy(texts):
        log.extend(texts)
        if "bad" in texts:
            raise BertJaxError("bad")
        return [np.array([ord(char) for char in text if char.isalpha()], np.int32) for text in texts]

    return WordMemory(encode_toy, BERT_WORDS_AND_IDEOGRAPHS)


def test_a_word_is_encoded_once_until_all_are_forgotten(monkeypatch):
    log = []
    encode = remembering(log)
    for _ in range(2):
        assert encode(["ab c,ab", "c"])[1].tolist() == [5, 1]
    assert sorted(log) == ["", "", ",", "ab", "c"]
    monkeypatch.setattr(words, "ROOM", 50_000)
    counts = []
    for number in range(200):
        ids, lengths = encode([f"ab {'x' * (number + 1)}{chr(0x4E00 + number)} " * 20, "c"])
        assert lengths.tolist() == [20 * (number + 4), 1] and ids[-1] == ord("c")
        counts.append(log.count("ab"))
    assert 1 < counts[-1] < 10


def test_what_failed_is_not_remembered_as_empty():
    encode = remembering([])
    with pytest.raises(BertJaxError, match="bad"):
        encode(["good bad"])
    assert encode(["good"])[1].tolist() == [4]


def test_threads_share_it(monkeypatch, data_dir):
    monkeypatch.setattr(words, "ROOM", 20_000)
    tokenizer = tokenizers.load(data_dir / "vocab/bert-base-uncased-vocab.txt")
    encode = tokenizer.encoder()
    texts = [[f"word{n} of number {n}" for n in range(start, start + 20)] for start in range(0, 2000, 20)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for made, given in zip(pool.map(encode, texts), texts, strict=True):
            assert [part.tolist() for part in made] == list(expected(tokenizer, given))
