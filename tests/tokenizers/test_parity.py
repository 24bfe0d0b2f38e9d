"""Ids and offsets of transformers on 10,000 real sentences in five languages, for every kind of tokenizer."""

import gzip
import itertools
import json
import re

import numpy as np
import pytest
import sentencepiece
import weights
from tokenizers import AddedToken, ByteLevelBPETokenizer

from bert_jax import tokenizers
from tests.tokenizers.test_unigram import reference_pieces

transformers = pytest.importorskip("transformers")

E5 = weights.weights_dir() / "multilingual-e5-small"
LANGUAGES = ["en-us", "de", "es", "ru", "zh-cn"]


def lines(path, every, count):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        kept = (line.rstrip("\n\f") for line in file if line.strip() and not line.startswith("# doc:"))
        return list(itertools.islice(kept, 0, every * count, every))


@pytest.fixture(scope="module")
def sentences(data_dir):
    """2,000 paragraphs and sentences of a manual in each language, then some of Chinese prose and of old books."""
    texts = [line for lang in LANGUAGES for line in lines(data_dir / f"text/help-{lang}.txt.gz", 13, 2000)]
    assert len(texts) == 10_000
    return texts + lines(data_dir / "text/zh.txt.gz", 50, 500) + lines(data_dir / "text/books.txt.gz", 500, 500)


@pytest.fixture(scope="module")
def training_text(data_dir):
    """Other lines than those of `sentences`, in all five languages."""
    return [line for lang in LANGUAGES for line in lines(data_dir / f"text/help-{lang}.txt.gz", 29, 800)]


def write(folder, **files):
    """Writes JSON objects or text under names in which "__" stands for a dot; returns the folder."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def same(ours, peer, texts, offsets=True):
    """Ids, and offsets too, of two tokenizers; the batch of a corpus gives the ids of one text at a time."""
    encoded = peer(texts, add_special_tokens=False, return_offsets_mapping=True)
    mine = [ours.encode(text) for text in texts]
    for text, one, ids, spans in zip(texts, mine, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        assert one.ids.tolist() == ids, text
        assert not offsets or [tuple(span) for span in one.offsets.tolist()] == spans, text
    assert all(np.array_equal(a, b.ids) for a, b in zip(ours.encode_batch(texts), mine, strict=True))


def saved(tokenizer, folder, model_type):
    """What AutoTokenizer makes of the files that `save` writes beside a config.json."""
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(write(folder, config__json={"model_type": model_type}))


@pytest.mark.parametrize(
    ("vocabulary", "lowercase"),
    [("bert-base-uncased", True), ("bert-base-uncased", False), ("bert-base-chinese", False)],
)
def test_wordpiece(data_dir, sentences, tmp_path, vocabulary, lowercase):
    """As released: vocab.txt and the rule; then what we write of it."""
    pieces = (data_dir / f"vocab/{vocabulary}-vocab.txt").read_text(encoding="utf-8")
    folder = write(
        tmp_path, vocab__txt=pieces, tokenizer_config__json={"do_lower_case": lowercase}, config__json={"model_type": "bert"}
    )
    ours = tokenizers.load(folder)
    assert ours.kind == "wordpiece" and ours.lowercase == lowercase
    same(ours, transformers.AutoTokenizer.from_pretrained(folder), sentences)
    same(ours, saved(ours, tmp_path / "saved", "bert"), sentences[::10])


def test_cased_wordpiece_trained_here(training_text, sentences, tmp_path):
    ours = tokenizers.train("wordpiece", training_text, 6000, lowercase=False)
    assert any(piece != piece.lower() for piece in ours.pieces[5:])
    same(ours, saved(ours, tmp_path, "bert"), sentences)


@pytest.fixture(scope="module")
def albert(data_dir):
    return tokenizers.load(data_dir / "vocab/albert-base-v2-spiece.model")


def test_albert(albert, sentences, tmp_path):
    """The directory that we write. (From spiece.model alone transformers 5 deviates: see unigram.py.)"""
    same(albert, saved(albert, tmp_path, "albert"), sentences)


def test_albert_without_its_spiece_model(albert, sentences, tmp_path):
    """tokenizer.json alone is a pipeline of the same ids; beside spiece.model it counts where it adds tokens."""
    peer = saved(albert, tmp_path / "in", "albert")
    model = tmp_path / "in/spiece.model"
    assert tokenizers.load(tmp_path / "in").kind == "sentencepiece"
    content = model.read_bytes()
    model.unlink()
    ours = tokenizers.load(tmp_path / "in")
    assert ours.kind == "pipeline" and ours.lowercase and ours.special_ids == (0, 1, 2, 3, 4)
    same(ours, peer, sentences[::10])
    assert all(np.array_equal(*both) for both in zip(ours.encode_batch(sentences), albert.encode_batch(sentences), strict=True))
    added = json.loads((tmp_path / "in/tokenizer.json").read_text(encoding="utf-8"))
    added["added_tokens"].append({**added["added_tokens"][0], "id": 30_000, "content": "<ent>"})
    write(tmp_path / "in", tokenizer__json=added)
    model.write_bytes(content)
    assert tokenizers.load(tmp_path / "in").piece_id("<ent>") == 30_000


def test_albert_and_the_original_algorithm(albert, data_dir, sentences):
    """google-research/albert on sentencepiece itself. One paragraph of a book differs: a tie in the scores."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "vocab/albert-base-v2-spiece.model"))
    different = []
    for text, ids in zip(sentences, albert.encode_batch(sentences), strict=True):
        if ids.tolist() != [model.piece_to_id(piece) for piece in reference_pieces(model, text)]:
            different.append(text)
    assert len(different) <= 1, different


def test_multilingual_e5(sentences, tmp_path):
    """A Unigram tokenizer.json with 250,002 pieces, as it came and as we save it."""
    if not (E5 / "tokenizer.json").is_file():
        pytest.skip(f"no multilingual-e5-small at {E5}: make weights fetches it")
    ours = tokenizers.load(E5)
    assert ours.kind == "pipeline" and ours.vocab_size == 250_002
    same(ours, transformers.AutoTokenizer.from_pretrained(E5), sentences)
    peer = saved(ours, tmp_path, "bert")
    same(ours, peer, sentences[::7])
    assert (tmp_path / "tokenizer.json").read_bytes() == (E5 / "tokenizer.json").read_bytes()
    for texts in (("query: Wo ist das?", "<mask> 他说。"), ("a<s>b",)):
        pair = [ours.encode(text, special=True).ids for text in texts]
        assert ours.build(*pair)[0].tolist() == peer(*texts)["input_ids"]


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_byte_level_bpe(training_text, sentences, tmp_path, add_prefix_space):
    """RoBERTa's vocab.json and merges.txt, and the tokenizer.json that transformers makes of them."""
    library = ByteLevelBPETokenizer()
    library.train_from_iterator(
        training_text, 5000, show_progress=False, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    library.save_model(str(tmp_path))
    settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": add_prefix_space, "model_max_length": 77}
    folder = write(tmp_path, tokenizer_config__json=settings, config__json={"model_type": "roberta"})
    peer = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(peer).__name__ == "RobertaTokenizer"
    ours = tokenizers.load(folder)
    assert (ours.cls_id, ours.pad_id, ours.sep_id, ours.unk_id, ours.mask_id) == (0, 1, 2, 3, 4)
    same(ours, peer, sentences[::3] if add_prefix_space else sentences)
    out = saved(ours, tmp_path / "saved", "roberta")
    same(ours, out, sentences[::10])
    text = "Die Datei <mask> die<mask>."
    assert ours.encode(text, special=True).ids.tolist() == out(text, add_special_tokens=False)["input_ids"]
    peer.save_pretrained(tmp_path / "peer")
    again = tokenizers.load(tmp_path / "peer")
    assert again.kind == "pipeline" and again.settings["model_max_length"] == 77
    same(again, peer, sentences[::10])


@pytest.fixture(scope="module")
def xlm_roberta(training_text, tmp_path_factory):
    """A directory as fairseq's models were published: sentencepiece.bpe.model (unigram, for all its name) and no more."""
    folder = tmp_path_factory.mktemp("xlm-roberta")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_text),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=6000,
        character_coverage=0.9995,
        max_sentence_length=20_000,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.vocab").unlink()
    return write(folder, config__json={"model_type": "xlm-roberta"})


def test_xlm_roberta(xlm_roberta, sentences, tmp_path):
    peer = transformers.AutoTokenizer.from_pretrained(xlm_roberta)
    ours = tokenizers.load(xlm_roberta)
    assert ours.vocab_size == 6002 == len(peer)
    same(ours, peer, sentences)
    same(ours, saved(ours, tmp_path, "xlm-roberta"), sentences[::10])


def test_xlm_roberta_and_sentencepiece(xlm_roberta, sentences):
    """fairseq's ids are SentencePiece's plus one; but for ties and whatever lies among unknown characters."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(xlm_roberta / "sentencepiece.bpe.model"))
    different, seen = 0, 0
    for text, ids in zip(sentences, tokenizers.load(xlm_roberta).encode_batch(sentences), strict=True):
        expected = model.encode(text)
        if 0 not in expected:
            seen += 1
            different += ids.tolist() != [i + 1 for i in expected]
    assert seen > 6000 and different <= 0.001 * seen, (different, seen)


@pytest.mark.parametrize("kind", ["bert", "albert", "roberta", "xlm-roberta"])
def test_layout_of_one_text_and_of_a_pair(kind, data_dir, albert, xlm_roberta, sentences, tmp_path):
    if kind == "bert":
        ours = tokenizers.load(data_dir / "vocab/bert-base-uncased-vocab.txt")
    elif kind == "albert":
        ours = albert
    elif kind == "xlm-roberta":
        ours = tokenizers.load(xlm_roberta)
    else:
        library = ByteLevelBPETokenizer()
        library.train_from_iterator(
            sentences[:500], 600, show_progress=False, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        )
        library.save_model(str(tmp_path))
        ours = tokenizers.load(tmp_path)
    peer = saved(ours, tmp_path / "saved", kind)
    texts = sentences[:2000:100]
    encoded = ours.encode_batch(texts)
    for first, second, a, b in zip(texts, reversed(texts), encoded, reversed(encoded), strict=True):
        for built, there in (
            (ours.build(a, b), peer(first, second, return_token_type_ids=True)),
            (ours.build(a), peer(first, return_token_type_ids=True)),
        ):
            assert built[0].dtype == built[1].dtype == np.int32
            assert built[0].tolist() == there["input_ids"]
            assert built[1].tolist() == there["token_type_ids"]
    count, segments = {"bert": (3, 1), "albert": (3, 1), "roberta": (4, 0), "xlm-roberta": (4, 0)}[kind]
    marked = [f"{texts[0]} {piece} {texts[1]}{piece}x" for piece in (ours.pieces[i] for i in ours.special_ids)]
    theirs = peer(marked, add_special_tokens=False, return_offsets_mapping=True)
    assert [ids.tolist() for ids in ours.encode_batch(marked, special=True)] == theirs["input_ids"]
    for one, ids, offsets in zip(
        ours.encode_batch_with_offsets(marked, special=True), theirs["input_ids"], theirs["offset_mapping"], strict=True
    ):
        assert one.ids.tolist() == ids and [tuple(span) for span in one.offsets.tolist()] == offsets
    assert all(np.isin(ids, ours.special_ids).sum() == 2 for ids in theirs["input_ids"])
    assert len(ours.build([7], [8, 9])[0]) == 3 + count and ours.build([7], [8])[1].max() == segments
    assert ours.build([])[0].tolist() == [ours.cls_id, ours.sep_id]


def test_added_tokens(training_text, sentences, tmp_path):
    """Tokens that somebody added to a BERT: ids after the vocabulary, found in the text before anything else."""
    plain = tokenizers.train("wordpiece", training_text, 3000)
    peer = saved(plain, tmp_path / "plain", "bert")
    peer.add_tokens(["LibreOffice", "doc", AddedToken("check box", single_word=True)])
    peer.add_tokens([AddedToken("Schaltfl", lstrip=True, normalized=False), AddedToken("<ent>", special=True)])
    peer.save_pretrained(tmp_path / "peer")
    write(tmp_path / "peer", config__json={"model_type": "bert"})
    ours = tokenizers.load(tmp_path / "peer")
    assert ours.kind == "pipeline" and ours.vocab_size == len(peer) == 3004 and ours.piece_id("doc") < 3000
    assert ours.special_ids == (0, 1, 2, 3, 4, 3003) and ours.piece(3000) == "LibreOffice"
    same(ours, peer, sentences[::2])
    same(ours, saved(ours, tmp_path / "saved", "bert"), sentences[::10])
    assert sum((ids >= 3000).sum() for ids in ours.encode_batch(sentences)) > 100
    text = "LibreOffice <ent> document [MASK]"
    assert ours.encode(text, special=True).ids.tolist() == peer(text, add_special_tokens=False)["input_ids"]
    assert 3003 not in ours.encode(text).ids and 3000 in ours.encode(text).ids


def test_smiles_words_as_a_pipeline(tmp_path, data_dir):
    """Chemists cut SMILES by a pattern and look each part up: a tokenizer.json can say that, and transformers runs it."""
    pattern = r"\[[^\]]+\]|Br|Cl|>>|%[0-9]{2}|[A-Za-z0-9()=#.\\/:~@+*$?>-]"
    with open(data_dir / "chem/suzuki_random_split_0.tsv", encoding="utf-8") as file:
        header, *rows = (line.rstrip("\n").split("\t") for line in itertools.islice(file, 400))
    column = next(i for i, cell in enumerate(rows[0]) if ">" in cell)
    texts = [row[column] for row in rows]
    words = sorted({word for text in texts for word in re.findall(pattern, text)})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {piece: i for i, piece in enumerate(pieces)}},
    }
    ours = tokenizers.load(write(tmp_path, tokenizer__json=content))
    assert [[ours.piece(i) for i in ids] for ids in ours.encode_batch(texts)] == [re.findall(pattern, t) for t in texts]
    same(ours, saved(ours, tmp_path / "saved", "bert"), texts)
    assert ours.word_starts().all()
    assert ours.encode("C[MASK]C").ids.tolist() == [ours.piece_id("C"), ours.unk_id, ours.piece_id("C")]
