"""Tagged sentences from files with a word a line, in their original formats."""

import logging

import pytest

from bert_jax.errors import BertJaxError
from bert_jax.tasks import columns
from bert_jax.tasks.columns import Columns, Lists, a_word_a_line, conll_2003, conllu, iob2, to_iob2, wikiann

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP I-ORG
rejects VBZ B-VP O
German JJ B-NP I-MISC
call NN I-NP O

Peter NNP B-NP I-PER
Bonn NNP I-NP I-LOC
Ulm NNP I-NP B-LOC
"""
UD = """# sent_id = 1
# text = l'été # now
1-2\tl'été\t_\t_\t_\t_\t_\t_\t_\t_
1\tl'\tle\tDET\tD\t_\t2\tdet\t_\t_
2\tété\tété\tNOUN\tN\t_\t0\troot\t_\t_
2.1\tx\tx\tVERB\tV\t_\t_\t_\t_\t_
3\t#\t#\tSYM\tS\t_\t2\tpunct\t_\t_

1\t10 000\t10 000\tNUM\tM\t_\t0\troot\t_\t_

"""


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def test_conll_2003_is_converted_from_iob1(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        rows = conll_2003(write(tmp_path / "eng.train", CONLL)).read()
    assert rows.texts == [("EU", "rejects", "German", "call"), ("Peter", "Bonn", "Ulm")]
    assert rows.labels == [("B-ORG", "O", "B-MISC", "O"), ("B-PER", "B-LOC", "B-LOC")]
    assert caplog.text.count("IOB1") == 1 and len(caplog.records) == 1
    chunks = Columns(str(tmp_path / "eng.train"), 0, 2, "blank").read()  # the same file's chunks are IOB2 already
    assert chunks.labels[1] == ("B-NP", "I-NP", "I-NP") and len(caplog.records) == 1
    parts = Columns(str(tmp_path / "eng.train"), 0, 1, "blank")
    assert parts.labels() == ("JJ", "NN", "NNP", "VBZ")


def test_conllu_has_words_and_no_tokens_of_several(tmp_path):
    path = write(tmp_path / "x.conllu", UD)
    assert conllu(path).read() == ([("l'", "été", "#"), ("10 000",)], [("DET", "NOUN", "SYM"), ("NUM",)])
    assert conllu(path, "xpos").read().labels == [("D", "N", "S"), ("M",)]
    assert Columns(path, 1, None, numbered=True).read() == ([("l'", "été", "#"), ("10 000",)], [])


def test_wikiann_iob2_and_other_line_ends(tmp_path):
    path = write(tmp_path / "train", "\ufeffen:#\tO\r\nen:en:a\u2028b\tB-PER\r\n\r\n\r\nen:c\tB-PER")
    assert wikiann(path, "en").read() == ([("#", "en:a\u2028b"), ("c",)], [("O", "B-PER"), ("B-PER",)])
    text = "# text = tampa bay\n1\ttampa\tB-LOC\t-\tstephen\n2\tbay\tI-LOC\t-\tstephen\n\n"
    assert iob2(write(tmp_path / "x.iob2", text)).read() == ([("tampa", "bay")], [("B-LOC", "I-LOC")])


@pytest.mark.parametrize("text, message", [
    ("", "no sentences"), ("\n \n", "no sentences"), ("-DOCSTART-\tO\n", "no sentences"), ("a\n", "line 1 has 1 columns"),
    ("x\tO\n\ty\n", "line 2 has no word"), ("x\tO\ny\t \n", "line 2 has no tag"),
    ("a\tB-X\nb\tI-X\n\nc\tO\nd\tI-X\n", "neither IOB1 nor IOB2: I-X after O in the sentence before line 6, B-X after O in"),
])
def test_files_that_are_wrong(tmp_path, text, message):
    with pytest.raises(BertJaxError, match=message):
        Columns(write(tmp_path / "x", text)).read()


def test_other_files_that_are_wrong(tmp_path):
    with pytest.raises(BertJaxError, match="cannot be read"):
        Columns(str(tmp_path / "none")).read()
    (tmp_path / "latin").write_bytes("é\tO\n".encode("latin-1"))
    with pytest.raises(BertJaxError, match="not UTF-8"):
        Columns(str(tmp_path / "latin")).read()
    with pytest.raises(BertJaxError, match="the word 'de:x', which does not begin with 'en:'"):
        wikiann(write(tmp_path / "x", "de:x\tO\n"), "en").read()
    with pytest.raises(BertJaxError, match="line 1 has no tag"):
        conllu(write(tmp_path / "y", UD.split("\n", 3)[3].replace("DET", "_"))).read()


def test_iob1_becomes_iob2():
    assert to_iob2(("I-A", "I-A", "B-A", "I-B", "O", "I-B")) == ("B-A", "I-A", "B-A", "B-B", "O", "B-B")
    assert columns.entities(["O", "I-X"]) and not columns.entities(["O", "B", "I", "B-"])


def test_real_files(data_dir, caplog):
    """As many sentences and words as their READMEs and statistics say (data/README.md; en_ewt-ud-dev.stats)."""
    for language in ("en", "de"):
        rows = wikiann(str(data_dir / "ner/wikiann" / language / "dev"), language).read()
        assert len(rows.texts) == 10_000 and all(len(w) == len(t) for w, t in zip(*rows, strict=True))
    rows = iob2(str(data_dir / "ner/uner-ewt/en_ewt-ud-dev.iob2")).read()
    assert (len(rows.texts), sum(map(len, rows.texts))) == (2_001, 25_149)
    begun = [tag for tags in rows.labels for tag in tags if tag[0] == "B"]
    assert {kind: begun.count(f"B-{kind}") for kind in ("LOC", "ORG", "PER")} == {"LOC": 399, "ORG": 224, "PER": 343}
    ewt = conllu(str(data_dir / "syntax/ewt/en_ewt-ud-dev.conllu"))
    assert len(ewt.read().texts) == 2_001 and len(ewt.labels()) == 17
    for language in ("de", "fr", "zh"):
        assert len(conllu(str(data_dir / f"syntax/pud/{language}_pud-ud-test.conllu")).read().texts) == 1_000
    assert not caplog.records


def test_a_sentence_a_line_as_lists(tmp_path, caplog):
    lines = ['{"t": ["a", "b\\u2028c "], "n": ["I-X", "O"]}', "", '{"t": ["d"], "n": ["I-X"], "more": 1}']
    path = write(tmp_path / "x.jsonl", "\n".join(lines))
    assert Lists(path, "t", None).read() == ([("a", "b\u2028c"), ("d",)], []) and not caplog.records
    with caplog.at_level(logging.WARNING):
        assert Lists(path, "t", "n").read().labels == [("B-X", "O"), ("B-X",)]
    assert caplog.text.count("IOB1") == 1 and len(caplog.records) == 1
    numbers = write(tmp_path / "y.jsonl", '{"words": ["a", "b"], "tags": [10, 2]}')
    with caplog.at_level(logging.WARNING):
        assert Lists(numbers).read().labels == [("10", "2")] and Lists(numbers).labels() == ("2", "10")
    assert "tags are numbers, so only accuracy is scored" in caplog.text


@pytest.mark.parametrize("text, message", [
    ("", "no sentences"), ("[", "line 1 is not JSON"), ("[1]", "line 1 is no JSON object"),
    ('{"words": ["\\ud83d"], "tags": ["O"]}', "line 1: 'words' has half a character"),
    ('{"words": ["a"], "ner": ["O"]}', "line 1 has no field 'tags'; there are words, ner"),
    ('{"words": "a", "tags": ["O"]}', "line 1: 'words' is not a list of strings"),
    ('{"words": [true], "tags": ["O"]}', "line 1: 'words' is not a list of strings"),
    ('{"words": [], "tags": []}', "line 1: 'words' is empty"), ('{"words": ["a"], "tags": [" "]}', "has an empty string"),
    ('\n{"words": ["a"], "tags": ["O", "O"]}', "line 2 has 1 words and 2 tags"),
])
def test_lists_that_are_wrong(tmp_path, text, message):
    with pytest.raises(BertJaxError, match=message):
        Lists(write(tmp_path / "x.jsonl", text)).read()


def test_parts_of_sentences_share_none(tmp_path):
    path = write(tmp_path / "x", "".join(f"w{k % 40}\tO\n\n" for k in range(80)))
    parts = [Columns(path, share=share).read() for share in ((0.0, 0.5), (0.5, 1.0))]
    assert sum(len(part.texts) for part in parts) == sum(len(part.labels) for part in parts) == 80
    assert min(len(part.texts) for part in parts) > 10 and not set(parts[0].texts) & set(parts[1].texts)
    with pytest.raises(BertJaxError, match="from where up to where"):
        Columns(path, share=(0.5, 0.2))


def test_what_columns_are_apart_by(tmp_path):
    assert a_word_a_line(write(tmp_path / "a", "\n\nnew york\tB-X\n")).read().texts == [("new york",)]
    assert a_word_a_line(write(tmp_path / "b", "york  x B-X \n")).read() == ([("york",)], [("B-X",)])
    text = "-DOCSTART-\n\n-DOCSTART- -X- O\nnew\u00a0york NNP B-X \nx NN O\n"
    assert a_word_a_line(write(tmp_path / "c", text)).read() == ([("new\u00a0york", "x")], [("B-X", "O")])


def test_the_language_before_every_word_is_taken_away(tmp_path):
    """As in WikiANN; a colon in some words alone belongs to them."""
    path = write(tmp_path / "de", "de:Ulm\tB-LOC\nde::\tO\n\nde:z.B.:\tO\n")
    assert a_word_a_line(path).read() == wikiann(path, "de").read() == ([("Ulm", ":"), ("z.B.:",)], [("B-LOC", "O"), ("O",)])
    assert a_word_a_line(write(tmp_path / "x", "re:\tO\nUlm\tB-LOC\n")).read().texts == [("re:", "Ulm")]


@pytest.mark.parametrize("text, message", [
    ("Token\tTag\na\tO\n", "begins with names of columns"), ("a\tO\n\n# id 1\tdomain=en\nb\tO\n", "line 3 is a comment"),
    ("a O\nNew York B-X\n", "line 2 has 3 columns .*, those before have 2"),
])
def test_what_words_a_line_must_not_have(tmp_path, text, message):
    with pytest.raises(BertJaxError, match=message):
        a_word_a_line(write(tmp_path / "x", text)).read()
