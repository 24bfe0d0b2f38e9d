"""Loading: every wrong file is refused in one line that says what to do; importing pulls in no accelerator library."""

import json
import pathlib
import subprocess
import sys

import pytest

from bert_jax import tokenizers
from bert_jax.errors import BertJaxError
from bert_jax.tokenizers.wordpiece import WordPieceTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
JUNK = bytes(range(256)) * 8


def refuse(path, match):
    with pytest.raises(BertJaxError, match=match) as error:
        tokenizers.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("vocab.txt", JUNK, "not UTF-8 text"),
        ("vocab.txt", b"[PAD]\nabc\0\n", "line 2 holds a NUL byte"),
        ("vocab.txt", b"[PAD]\n\nabc\n", "line 2 is empty"),
        ("vocab.txt", b"", "line 1 is empty"),
        ("vocab.txt", "\n".join(SPECIALS[:3]).encode(), r"lacks \[SEP\] \[MASK\]"),
        ("vocab.txt", "\n".join([*SPECIALS, "a", "b", "a"]).encode(), "holds 'a' twice"),
        ("spiece.model", JUNK, "not a SentencePiece model"),
        ("spiece.model", b"", "not a SentencePiece model"),
        ("tokenizer.json", JUNK, "is not JSON"),
        ("tokenizer.json", b"[1]", "a JSON object is needed"),
        ("tokenizer.json", b"{}", "holds no WordPiece vocabulary"),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": []}}', "give the spiece.model"),
    ],
)
def test_wrong_files(tmp_path, name, content, match):
    path = tmp_path / name
    path.write_bytes(content)
    refuse(path, match)


def test_missing_paths(tmp_path):
    refuse(tmp_path / "absent", "no tokenizer at")
    refuse(tmp_path, "holds no tokenizer")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda content: content["normalizer"].update(type="NFC"), "normalizer is 'NFC'"),
        (lambda content: content.update(pre_tokenizer=None), "pre_tokenizer is None"),
        (lambda content: content["model"].update(unk_token="<unk>"), "unk_token is '<unk>'"),
        (lambda content: content["model"]["vocab"].update(extra=99), "gaps or shared ids"),
        (lambda content: content["model"]["vocab"].pop("[MASK]"), r"beyond the vocabulary|gaps"),
        (lambda content: content["added_tokens"].append({"id": 6, "content": "<new>"}), "adds 1 tokens beyond"),
    ],
)
def test_foreign_pipelines(tmp_path, change, match):
    WordPieceTokenizer([*SPECIALS, "a"]).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    refuse(path, match)


def test_sentencepiece_without_the_specials(tmp_path):
    import sentencepiece

    lines = [f"some words and number {n} more words" for n in range(500)]
    for kind, match in (("unigram", r"lacks <pad> \[CLS\]"), ("bpe", "not of the unigram type")):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(tmp_path / kind),
            vocab_size=40,
            model_type=kind,
            minloglevel=2,
        )
        refuse(tmp_path / f"{kind}.model", match)


def test_case_follows_config_then_content(tmp_path, caplog):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, "[unused1]", "<S>", "a"]))
    assert tokenizers.load(path).lowercase and "no capitals" in caplog.text
    path.write_text("\n".join([*SPECIALS, "a", "A"]))
    assert not tokenizers.load(path).lowercase
    caplog.clear()
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert tokenizers.load(path).lowercase and not caplog.records


def test_carriage_returns_are_not_part_of_a_piece(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPECIALS, "a", ""]).encode())
    assert tokenizers.load(path).pieces == (*SPECIALS, "a")


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BertJaxError, match="cannot save the tokenizer"):
        WordPieceTokenizer(SPECIALS).save(tmp_path / "file" / "below")


def test_import_is_light():
    heavy = "{'jax', 'flax', 'torch', 'tensorflow', 'transformers'}"
    code = f"import sys, bert_jax.tokenizers; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "set()"
