"""Translations stay together: document by document, line by line, on one side."""

import gzip
import json
import re

import numpy as np
import pytest

from bert_jax.data import sources, stages
from bert_jax.data.parallel import ParallelCorpus
from bert_jax.data.prepare import prepare
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from tests.data.test_prepare import Interrupted, contents


def write(tmp_path, **texts: str) -> list[str]:
    """One file a language; `_` in a keyword is a dot of the file's name, the language is what comes before."""
    specs = []
    for name, content in texts.items():
        path = tmp_path / name.replace("_", ".")
        path.write_text(content)
        specs.append(f"{name.partition('_')[0]}={path}")
    return specs


def groups(specs, documents="blank", **options) -> list[tuple[str, ...]]:
    return [group.texts for group in ParallelCorpus(specs, documents=documents, **options).groups()]


def refused(specs, words, documents="blank", **options):
    with pytest.raises(BertJaxError, match=words) as caught:
        groups(specs, documents, **options)
    assert "\n" not in str(caught.value)


def test_lines_in_step(tmp_path):
    specs = write(tmp_path, en_txt="a\nb\n\nc\nd\ne\n", de_txt="A\n\n\nC\nD\nE\n\n\n")
    assert groups(specs) == [("a\nb", "A\n"), ("c\nd\ne", "C\nD\nE")]  # a translation that is missing ends no document
    assert groups(specs, "file") == [("a\nb\nc\nd\ne", "A\n\nC\nD\nE")]
    assert groups(specs, "line") == [("a", "A"), ("b", ""), ("c", "C"), ("d", "D"), ("e", "E")]


def test_marked_documents(tmp_path, monkeypatch):
    specs = write(tmp_path, en_txt="# 1\na\nb\n\n# 2\n# 3\nc\n# 4\nd\n", de_txt="\n# 1\nA\nB\n# 2\n# 3\nC\nCC\n# 4\nD\n\n")
    corpus = ParallelCorpus(specs, documents="prefix:#")
    assert [group.texts for group in corpus.groups()] == [("a\nb", "A\nB"), ("d", "D")]
    assert corpus.left_out == 1
    specs = write(tmp_path, en_txt="# 1\na\nb\n# 2\nc\n", de_txt="# 1\nA\n\n# 2\nC\n")  # b has no translation
    assert groups(specs, "prefix:#") == [("a\nb", "A\n"), ("c", "C")]
    specs = write(tmp_path, en_txt="a\nb\n\f\nc\n", de_txt="A\nB\f\n\nC\n")
    assert groups(specs, "formfeed") == [("a\nb", "A\nB"), ("c", "C")]
    english, german = ([json.dumps({"text": text}) for text in texts] for texts in (["a\nb", "", "c"], ["A\nB", "", "C"]))
    specs = write(tmp_path, en_jsonl="\n".join(english), de_jsonl="\n".join(german))
    assert groups(specs) == [("a\nb", "A\nB"), ("c", "C")]


def test_several_files_a_language(tmp_path):
    specs = write(tmp_path, en_1="a\n", de_1="A\n", en_2="b\nc\n", de_2="B\nC\n")
    assert groups(specs) == [("a", "A"), ("b\nc", "B\nC")]
    corpus = ParallelCorpus(specs)
    list(corpus.groups())
    assert corpus.position == corpus.total_bytes == 12


def test_what_is_out_of_step_is_refused(tmp_path):
    refused(write(tmp_path, en_txt="a\nb\n", de_txt="A\n"), r"de.txt: ends after line 1, .*en.txt has more: parallel files")
    refused(write(tmp_path, en_txt="#\na\n#\nb\n", de_txt="#\nA\n"), "de.txt: ends after 1 documents, .*en.txt", "prefix:#")
    refused(write(tmp_path, en_txt="#\na\nb\n", de_txt="#\nA\n"), "none of 1 documents has equally many lines", "prefix:#")
    refused(write(tmp_path, en_txt="a\n"), "at least two languages")
    one, two = write(tmp_path, en_txt="a\n", de_txt="A\n")
    refused([one, one, two], "equally many sources in every language, here are en 2, de 1")
    refused([one.partition("=")[2], two], "no language, where other")
    refused([one, *write(tmp_path, de_jsonl="{}")], "of different kinds")


def test_a_long_document_is_cut_in_all_languages(tmp_path, monkeypatch, warnings_of):
    monkeypatch.setattr(sources, "MAX_DOCUMENT", 12)
    specs = write(tmp_path, en_txt="aaaa\nbb\ncc\n", de_txt="AAAA\nB\nCCCC\n")
    assert groups(specs, "file") == [("aaaa\nbb", "AAAA\nB"), ("cc", "CCCC")]
    assert "is cut, in all languages" in " ".join(warnings_of())


def rows(split) -> list[tuple[tuple[int, ...], ...]]:
    """Every group as its documents' sentences as ids."""
    ids = split.stretch(0, split.tokens) & (split.word_start - 1)
    cuts = np.searchsorted(split.sentences, split.documents)
    documents = [
        tuple(tuple(ids[split.sentences[k] : split.sentences[k + 1]].tolist()) for k in range(a, b))
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    return [tuple(documents[i : i + split.parallel]) for i in range(0, len(documents), split.parallel)]


@pytest.fixture
def aligned(tmp_path, text):
    """A text, and the same with every word spelt backwards, some lines without a translation or without tokens."""
    _, documents = text(120)
    english, odd = [], []
    for number, document in enumerate(documents):
        lines = re.split(r"(?<=\.) ", document)
        english.append([*lines, "\u200b" if number % 7 == 0 else "the end"])
        odd.append([" ".join(word[::-1] for word in line.split()) for line in lines] + ["" if number % 5 == 0 else "dne eht"])
    for name, content in (("en", english), ("od", odd)):
        (tmp_path / f"{name}.txt").write_text("".join(f"# {n}\n" + "\n".join(lines) + "\n" for n, lines in enumerate(content)))
    return [f"{name}={tmp_path / name}.txt" for name in ("en", "od")], english, odd


def test_a_store(aligned, tokenizer, tmp_path, monkeypatch):
    specs, english, odd = aligned
    options = dict(documents="prefix:#", parallel=True, heldout=0.2, shard_tokens=900, case=True, progress=False)
    manifest = prepare(specs, tmp_path / "one", tokenizer, workers=1, **options)
    assert manifest.parallel == 2 and manifest.languages == ("en", "od") and manifest.options["sentences"] == "line"
    store = TokenStore(tmp_path / "one")
    found, sides = {}, []
    for name in store.splits:
        split = store.split(name)
        assert split.parallel == 2
        np.testing.assert_array_equal(split.document_language, np.arange(len(split.documents) - 1) % 2)
        ends = np.cumsum([tokens for _, tokens in store.manifest.splits[name].shards])
        assert len(ends) > 3 and np.isin(ends, split.documents[::2]).all()  # no shard ends inside a group
        found |= {row[0][0]: row for row in rows(split)}
        sides.append({row[0][0] for row in rows(split)})
    assert not sides[0] & sides[1] and len(found) == 120
    for left, right in zip(english, odd, strict=True):
        kept = [(a, b) for a, b in zip(left, right, strict=True) if a.strip("\u200b") and b]
        encoded = [tuple(tuple(ids.tolist()) for ids in tokenizer.encode_batch(list(side))) for side in zip(*kept, strict=True)]
        assert found[encoded[0][0]] == tuple(encoded)
    monkeypatch.setattr(stages, "TASK", 300)  # documents are cut, in step
    prepare(specs, tmp_path / "two", tokenizer, workers=2, **options)
    with monkeypatch.context() as patch:
        patch.setattr("bert_jax.data.prepare.Work", Interrupted)
        patch.setattr(Interrupted, "calls", -40)
        with pytest.raises(KeyboardInterrupt):
            prepare(specs, tmp_path / "three", tokenizer, workers=1, **options)
    assert json.loads((tmp_path / "three.partial" / "state.json").read_text())["consumed"] % 2 == 0
    prepare(specs, tmp_path / "three", tokenizer, workers=1, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_documents_left_out_are_counted(aligned, tokenizer, tmp_path, warnings_of):
    specs, english, _ = aligned
    path = tmp_path / "od.txt"
    path.write_text(path.read_text().replace("# 6\n", "# 6\nmore\n").replace("# 9\n", "# 9\nmore\n"))
    options = dict(documents="prefix:#", parallel=True, heldout=0, workers=1, progress=False)
    manifest = prepare(specs, tmp_path / "store", tokenizer, **options)
    assert manifest.splits["train"].documents == 2 * 118
    assert "2 documents were left out, whose numbers of lines differ in en, od" in " ".join(warnings_of())


def test_a_real_manual(data_dir, tmp_path, warnings_of):
    """In two languages of which one has documents whose lines do not match."""
    from bert_jax import tokenizers

    tokenizer = tokenizers.load(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
    specs = []
    for language in ("en-us", "es"):
        parts = gzip.open(data_dir / "text" / f"help-{language}.txt.gz", "rt").read().split("# doc: ")[1:]
        (tmp_path / language).write_text("".join(f"# doc: {part}" for part in parts[::6]))
        specs.append(f"{language}={tmp_path / language}")
    expected = len(parts[::6])
    options = dict(documents="prefix:# doc:", parallel=True, heldout=0.1, workers=1, progress=False)
    manifest = prepare(specs, tmp_path / "store", tokenizer, **options)
    left_out = [int(found[1]) for line in warnings_of() if (found := re.search(r"(\d+) documents were left out", line))]
    assert sum(info.documents for info in manifest.splits.values()) == 2 * (expected - sum(left_out))
    for name in manifest.splits:
        assert all(len(row[0]) == len(row[1]) > 0 for row in rows(TokenStore(tmp_path / "store").split(name)))
