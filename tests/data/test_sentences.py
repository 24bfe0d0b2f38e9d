"""Sentence boundaries, by rule and by example."""

import time

import pytest

from bert_jax.data.sentences import pieces, splitter
from bert_jax.errors import BertJaxError

punkt = splitter("punkt")


def test_english():
    text = (
        "Dr. Smith went to Washington, D.C. on Jan. 3rd. He stayed until 5 p.m. and left. "
        '"Is that all?" asked the Pope. "That\'s nice," said K. She paid $3.50.'
    )
    assert punkt(text) == [
        "Dr. Smith went to Washington, D.C. on Jan. 3rd.",
        "He stayed until 5 p.m. and left.",
        '"Is that all?" asked the Pope.',
        '"That\'s nice," said K. She paid $3.50.',
    ]


def test_a_sentence_never_crosses_a_paragraph_but_may_cross_a_line():
    assert punkt("# A heading\n\nFirst line\ngoes on\n \n\nwithout an end") == [
        "# A heading",
        "First line\ngoes on",
        "without an end",
    ]


def test_chinese_and_japanese():
    assert punkt("他来了。你好吗？“我很好！”他说。") == ["他来了。", "你好吗？", "“我很好！”", "他说。"]
    assert punkt("これです。「そうですか。」と言った。はい") == ["これです。", "「そうですか。」と言った。", "はい"]
    assert punkt("他说OK。Mr. Li left. Then 他走了。") == ["他说OK。", "Mr. Li left.", "Then 他走了。"]


@pytest.mark.parametrize("text", [
    "यह एक वाक्य है।| दूसरा वाक्य यहाँ है।| क्या यह तीसरा है?", "یہ ایک جملہ ہے۔| کیا یہ دوسرا ہے؟| ہاں۔",
    "هل هذه جملة؟| نعم. |هذه جملة أخرى.", "ይህ ዓረፍተ ነገር ነው።| ሌላ ነው።", "Սա նախադասություն է։| Սա մյուսն է։",
    "នេះជាប្រយោគ។| នេះជាប្រយោគទីពីរ។", "“यह सच है।”| उसने कहा।", "هل هذا صحيح؟!| نعم.", "(हाँ।)| फिर आया।", "ھاں؟...| نہیں۔",
    "بی۔بی۔سی کی خبر ۲۔۵ ہے۔| ہاں۔", "（对。）|好。",
])
def test_stops_of_other_scripts(text):
    expected = [sentence.strip() for sentence in text.split("|")]
    assert [sentence.strip() for sentence in punkt(text.replace("|", ""))] == expected


def test_lines():
    assert splitter("line")("One. Two.\n\n three \n") == ["One. Two.", " three "]


def test_nothing_and_unknown():
    assert punkt("") == punkt(" \n\n ") == splitter("line")("\n") == []
    with pytest.raises(BertJaxError, match="use one of punkt, line"):
        splitter("spacy")


def test_no_text_is_lost():
    text = 'One. Two! 三。四？ Five...\n\nSix? "Seven." ' * 50 + "x" * 3000
    for mode in ("punkt", "line"):
        assert "".join("".join(splitter(mode)(text)).split()) == "".join(text.split())


def test_pieces_cut_at_paragraphs_then_lines_then_spaces():
    paragraphs = "\n\n".join("word " * 15 for _ in range(40))
    cut = list(pieces(paragraphs, 200))
    assert "".join(cut) == paragraphs
    assert all(len(piece) <= 200 for piece in cut)
    assert all(piece.endswith("\n\n") for piece in cut[:-1])
    assert sum((punkt(piece) for piece in cut), []) == punkt(paragraphs)
    assert list(pieces("ab\ncd\nef", 6)) == ["ab\ncd\n", "ef"]
    assert list(pieces("ab cd ef", 6)) == ["ab cd ", "ef"]
    assert list(pieces("abcdefgh", 3)) == ["abc", "def", "gh"]
    assert list(pieces("", 3)) == [""]


@pytest.mark.parametrize("junk", ['"?!', "?", "a.b.", ". ", "(", "。", "a"])
def test_long_runs_do_not_take_quadratic_time(junk):
    """Unbroken, 300,000 characters of "?!" took minutes."""
    began = time.process_time()
    punkt(junk * (300_000 // len(junk)))
    assert time.process_time() - began < 20


def test_a_long_run_does_not_cut_words_elsewhere():
    words = "everybody returned concerning the matter. " * 60
    found = punkt(words + "A" * 2500 + " " + words)
    assert {word for sentence in found for word in sentence.split() if "A" not in word} == set(words.split())
    assert len(found) == 120 + 3
