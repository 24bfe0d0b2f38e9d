"""Training: the same vocabulary in every process, exact sizes, sampling, and one-line refusals."""

import contextlib
import gzip
import json
import logging
import os
import pathlib
import subprocess
import sys

import pytest

from bert_jax import tokenizers
from bert_jax.errors import BertJaxError
from bert_jax.tokenizers.sampling import training_lines, warn_of_stripped

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = ["wordpiece", "sentencepiece"]

TRAIN = """
import gzip, sys
from bert_jax import tokenizers
with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
    lines = [line for line, _ in zip(file, range(4000))]
if __name__ == "__main__":
    print(*(tokenizers.train(kind, lines, 2000).hash for kind in ("wordpiece", "sentencepiece")))
"""


@pytest.fixture(scope="module")
def lines(data_dir):
    with gzip.open(data_dir / "text/books.txt.gz", "rt", encoding="utf-8") as file:
        return [line for line, _ in zip(file, range(4000), strict=False)]


def test_same_vocabulary_whatever_the_process(data_dir):
    """Hash seeds and thread counts of the process must not show; two runs of the library's trainer alone do differ."""
    runs = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", TRAIN, str(data_dir / "text/books.txt.gz")]
        runs.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert runs[0] == runs[1] and len(runs[0].split()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_trained_tokenizer(kind, lines, tmp_path):
    tokenizer = tokenizers.train(kind, iter(lines), 1500)
    assert tokenizer.kind == kind and tokenizer.vocab_size == len(tokenizer.pieces) == 1500
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    ids = [i for one in tokenizer.encode_batch(lines) for i in one.tolist()]
    assert ids.count(tokenizer.unk_id) < 0.001 * len(ids)
    assert len(ids) < 0.5 * sum(map(len, lines)), "no merges were learnt"
    tokenizer.save(tmp_path)
    assert tokenizers.load(tmp_path).hash == tokenizer.hash


@pytest.mark.parametrize("kind", KINDS)
def test_trained_tokenizer_in_transformers(kind, lines, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers.train(kind, lines, 1500, lowercase=False)
    assert any(piece != piece.lower() for piece in tokenizer.pieces[5:])
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert" if kind == "wordpiece" else "albert"}))
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = peer(lines, add_special_tokens=False)["input_ids"]
    assert [ids.tolist() for ids in tokenizer.encode_batch(lines)] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_refusals(kind, lines):
    with pytest.raises(BertJaxError, match="holds no text"):
        tokenizers.train(kind, ["", " \n\n"], 1000)
    with pytest.raises(BertJaxError, match="vocab_size 10 cannot hold this text's .*characters: ask for"):
        tokenizers.train(kind, lines, 10)
    with pytest.raises(BertJaxError, match="vocab_size 900000 is more than this text can fill: ask for") as error:
        tokenizers.train(kind, lines, 900_000)
    most = int(str(error.value).split("at most ")[1].split(",")[0])
    assert tokenizers.train(kind, lines, most).vocab_size == most, "the size it names must work"
    with pytest.raises(BertJaxError, match="text 1 of the training corpus is a bytes"):
        tokenizers.train(kind, ["a", b"b"], 100)


def test_unknown_kind():
    with pytest.raises(BertJaxError, match="unknown tokenizer kind 'bpe'"):
        tokenizers.train("bpe", ["a"], 100)


def test_an_even_sample_of_a_corpus_too_large(caplog):
    corpus = [f"line {n:06d}" for n in range(20_000)]
    with caplog.at_level(logging.WARNING, "bert_jax"):
        kept = training_lines(iter(corpus), max_characters=50_000)
    assert 35_000 <= sum(map(len, kept)) <= 50_000
    assert f"{len(kept)} of 20000 lines" in caplog.text and len(caplog.records) == 1
    assert kept == sorted(kept) == training_lines(corpus, max_characters=50_000)
    quarters = [sum(int(line[5:]) // 5000 == quarter for line in kept) for quarter in range(4)]
    expected = len(kept) / 4
    assert all(abs(count - expected) < 4 * expected**0.5 for count in quarters), quarters


def test_a_corpus_that_fits_is_read_whole_and_silently(caplog):
    assert training_lines(["a\nb\n", "", " c "]) == ["a", "b", "c"]
    assert not caplog.records


def test_a_cased_model_keeps_accents():
    words = "Zürich über Café naïve Élan Ångström près Genève Straße müde Tür Käse Gemüse Königin fährt spät schön".split()
    texts = [f"{first} {second}" for first in words for second in words]
    cased, uncased = (tokenizers.train("sentencepiece", texts, 50, lowercase=lowercase) for lowercase in (False, True))
    assert "".join(cased.piece(i) for i in cased.encode("Zürich").ids) == "▁Zürich"
    assert "".join(uncased.piece(i) for i in uncased.encode("Zürich").ids) == "▁zurich"
    assert not cased.strip_accents and uncased.strip_accents


@pytest.mark.parametrize(("text", "becomes"), [
    ("यह पुस्तक बहुत अच्छी है और मुझे पसंद है", "है becomes ह"), ("これはペンです。どこへ行くのですか。でも", "で becomes て"),
    ("ที่นี่ดีมาก", "becomes"), ("Der Bär läuft über die Brücke", None), ("שָׁלוֹם עֲלֵיכֶם", None), ("l'été ☀️ où ça ❤️ déjà", None),
])
def test_lower_casing_that_strips_more_than_accents_is_warned_of(text, becomes, caplog):
    """Accents, points, and the marks that make a character a picture are left out at will."""
    warn_of_stripped([text] * 3)
    assert len(caplog.records) == (becomes is not None)
    assert becomes is None or (becomes in caplog.text and "--cased (lowercase=False)" in caplog.text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowercase", [True, False])
def test_training_warns_of_what_it_strips(kind, lowercase, caplog):
    with contextlib.suppress(BertJaxError):  # of the size, which comes later
        tokenizers.train(kind, ["यह पुस्तक बहुत अच्छी है और मुझे पसंद है"] * 30, 40, lowercase=lowercase)
    assert ("lower-casing strips" in caplog.text) == lowercase
