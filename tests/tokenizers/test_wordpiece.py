"""WordPiece: ids equal to transformers' on real text, what save writes, training, pickling."""

import csv
import json
import pickle

import numpy as np
import pytest

from bert_jax import tokenizers
from bert_jax.errors import BertJaxError
from bert_jax.tokenizers.wordpiece import WordPieceTokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = WordPieceTokenizer([*SPECIALS, "a", "cat", "##s", "sat", "[", "]", "mask", "naive"])


def sentences(data_dir, language):
    with open(data_dir / f"sts/stsb/stsb-{language}-test.csv", encoding="utf-8", newline="") as file:
        return [sentence for row in csv.reader(file) for sentence in row[:2]]


def questions(data_dir, language):
    content = json.loads((data_dir / f"qa/xquad/xquad.{language}.json").read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
    return [paragraph["context"] for paragraph in paragraphs] + [q["question"] for p in paragraphs for q in p["qas"]]


@pytest.fixture(scope="module", params=["bert-base-uncased-vocab.txt", "bert-base-chinese-vocab.txt"])
def real(request, data_dir):
    return tokenizers.load(data_dir / "vocab" / request.param)


@pytest.fixture(scope="module")
def peer(real, tmp_path_factory):
    """The same tokenizer as transformers loads it from what `save` wrote."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("exported")
    real.save(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("language", ["en", "de", "zh"])
def test_ids_equal_transformers(real, peer, data_dir, language):
    texts = (sentences(data_dir, language) + questions(data_dir, language))[::3]
    assert len(texts) >= 1300
    expected = peer(texts, add_special_tokens=False)["input_ids"]
    assert [ids.tolist() for ids in real.encode_batch(texts)] == expected


def test_original_class_agrees_without_our_files(real, data_dir, tmp_path):
    """From vocab.txt alone, so that nothing we wrote can hide a difference."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(real.pieces) + "\n", encoding="utf-8")
    peer = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"), do_lower_case=True)
    for text in questions(data_dir, "en")[:500]:
        assert real.encode(text).ids.tolist() == peer(text, add_special_tokens=False)["input_ids"]


def test_pairs_and_masks_in_transformers(real, peer):
    first, second = "The capital of France is [MASK].", "Paris [MASK]"
    pair = peer(first, second)
    a, b = (real.encode(text, special=True).ids.tolist() for text in (first, second))
    assert pair["input_ids"] == [real.cls_id, *a, real.sep_id, *b, real.sep_id]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert a.count(real.mask_id) == 1
    assert peer.mask_token_id == real.mask_id and peer.pad_token_id == real.pad_id


def test_real_vocabularies(data_dir):
    english = tokenizers.load(data_dir / "vocab/bert-base-uncased-vocab.txt")
    chinese = tokenizers.load(data_dir / "vocab/bert-base-chinese-vocab.txt")
    assert (english.vocab_size, chinese.vocab_size) == (30522, 21128)
    assert english.special_ids == chinese.special_ids == (0, 100, 101, 102, 103)
    assert english.lowercase and chinese.lowercase  # google-research/bert lists both among its lower-cased models
    assert english.hash != chinese.hash


def test_transformers_directory_loads(real, peer, tmp_path):
    peer.save_pretrained(tmp_path)
    assert tokenizers.load(tmp_path).hash == real.hash


def test_hash_does_not_depend_on_the_format(tmp_path):
    SMALL.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert tokenizers.load(tmp_path).hash == SMALL.hash
    assert tokenizers.load(tmp_path / "vocab.txt").hash == SMALL.hash
    (tmp_path / "tokenizer_config.json").unlink()
    assert tokenizers.load(tmp_path / "tokenizer.json").hash == SMALL.hash
    assert tokenizers.load(tmp_path / "vocab.txt").hash == SMALL.hash
    reordered = [*SPECIALS, "cat", "a", *SMALL.pieces[7:]]
    rules = {"lowercase": False}, {"strip_accents": False}, {"split_chinese": False}
    others = [WordPieceTokenizer(SMALL.pieces, **rule) for rule in rules] + [WordPieceTokenizer(reordered)]
    assert len({SMALL.hash, *(other.hash for other in others)}) == 5


@pytest.mark.parametrize("rule", [{"lowercase": False}, {"strip_accents": False}, {"split_chinese": False}])
def test_every_rule_survives_saving_and_pickling(rule, tmp_path):
    tokenizer = WordPieceTokenizer(SMALL.pieces, **rule)
    tokenizer.save(tmp_path)
    assert tokenizers.load(tmp_path).hash == pickle.loads(pickle.dumps(tokenizer)).hash == tokenizer.hash


def test_a_literal_mask_is_text_unless_asked_for():
    text = "a cats [MASK]"
    assert [SMALL.piece(i) for i in SMALL.encode(text).ids] == ["a", "cat", "##s", "[", "mask", "]"]
    assert SMALL.encode_batch([text])[0].tolist() == SMALL.encode(text).ids.tolist()
    assert [SMALL.piece(i) for i in SMALL.encode(text, special=True).ids] == ["a", "cat", "##s", "[MASK]"]


def test_no_corpus_text_gives_a_special_id(real):
    texts = [f"x{real.pieces[i]}y {real.pieces[i]} {real.pieces[i].lower()}" for i in real.special_ids]
    forbidden = [i for i in real.special_ids if i != real.unk_id]
    assert not np.isin(np.concatenate(real.encode_batch(texts)), forbidden).any()


def test_offsets_are_characters_of_the_text_given():
    text = "  Naïve 😀 cats"
    ids, offsets = SMALL.encode(text)
    assert ids.dtype == offsets.dtype == np.int32 and offsets.shape == (len(ids), 2)
    assert [text[begin:end] for begin, end in offsets] == ["Naïve", "😀", "cat", "s"]
    assert SMALL.encode("").offsets.shape == (0, 2) and SMALL.encode_batch(["", "a"])[0].shape == (0,)


def test_pieces_decoding_and_word_starts():
    assert SMALL.decode([2, 5, 6, 7, 8, 3]) == "[CLS] a cats sat [SEP]"
    assert SMALL.piece(SMALL.piece_id("##s")) == "##s"
    assert [SMALL.pieces[i] for i in np.flatnonzero(~SMALL.word_starts())] == ["##s"]
    for call in (lambda: SMALL.piece(13), lambda: SMALL.piece(-1), lambda: SMALL.decode([5, 99])):
        with pytest.raises(BertJaxError, match="ids run from 0 to 12"):
            call()
    with pytest.raises(BertJaxError, match="'dog' is not one of the 13 pieces"):
        SMALL.piece_id("dog")


def test_words_above_a_hundred_characters_are_unknown():
    assert SMALL.encode("cat" + "s" * 97).ids.size == 98
    assert SMALL.encode("cat" + "s" * 98).ids.tolist() == [SMALL.unk_id]


def test_texts_must_be_text():
    with pytest.raises(BertJaxError, match="text 1 is a bytes"):
        SMALL.encode_batch(["a", b"cat"])
    with pytest.raises(BertJaxError, match="lone surrogate at character 1"):
        SMALL.encode("a\ud800")
