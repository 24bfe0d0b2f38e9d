"""Sentences to tokens with tokenizers whose pieces include the blank before a word, and what is refused before work begins."""

import json
import os
import threading

import numpy as np
import pytest
import tokenizers as library

from bert_jax.data import stages
from bert_jax.data.prepare import prepare
from bert_jax.data.stages import Recipe, Work
from bert_jax.errors import BertJaxError
from bert_jax.tokenizers.pipeline import PipelineTokenizer

TEXT = "The cat sat. The dog\nran on it. “Yes,” he said.The Über Zoo. 猫。犬。\n\nA new one."
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def byte_level(suffix: str | None = None) -> PipelineTokenizer:
    """RoBERTa's form, learnt from `TEXT`."""
    made = library.Tokenizer(library.models.BPE(**({"end_of_word_suffix": suffix} if suffix else {})))
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False,
        **({"end_of_word_suffix": suffix} if suffix else {}),
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    made.post_processor = library.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PipelineTokenizer(made.to_str().encode())


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


def pieces(tokenizer, made) -> list[str]:
    bit = stages.word_start_bit(made.tokens.dtype)
    return [tokenizer.piece(int(token) & (bit - 1)) for token in made.tokens]


def begins(made) -> np.ndarray:
    return made.tokens >= stages.word_start_bit(made.tokens.dtype)


@pytest.mark.parametrize("case", [False, True])
def test_sentences_have_the_blanks_of_their_text(tokenizer, case):
    """Sentence by sentence the pieces are those of the whole text, with single blanks for newlines."""
    made = Work(tokenizer, Recipe(sentences="punkt", case=case))([(TEXT,)])
    whole = " ".join(TEXT.split())
    assert pieces(tokenizer, made) == [tokenizer.piece(i) for i in tokenizer.encode(whole).ids]
    assert len(made.sentence_lengths) > 5 and made.sentence_counts.tolist() == [len(made.sentence_lengths)]
    firsts = np.cumsum(made.sentence_lengths) - made.sentence_lengths
    assert begins(made)[firsts].all(), "a sentence begins a word, with a blank before it or not"
    within = np.delete(np.arange(len(made.tokens)), firsts)
    opened = [pieces(tokenizer, made)[n].startswith("Ġ") for n in within]
    np.testing.assert_array_equal(begins(made)[within], opened)


def test_lines_are_a_blank_apart_and_blank_ones_nothing(tokenizer):
    work = Work(tokenizer, Recipe(sentences="line"))
    made = work([("The cat.\n \n\nThe dog.\n  The Zoo.",)])
    assert made.sentence_counts.tolist() == [3]
    expected = [tokenizer.piece(i) for text in ("The cat.", " The dog.", "  The Zoo.") for i in tokenizer.encode(text).ids]
    assert pieces(tokenizer, made) == expected
    made = Work(tokenizer, Recipe(parallel=True))([("The cat.\n \nThe dog.", "The dog.\nThe cat.\nThe cat.")])
    assert made.sentence_counts.tolist() == [2, 2], "a line that is blank in one language goes in all"


def test_wordpiece_is_what_it_was(tiny_store):
    """Pieces that tell no blanks: sentence by sentence, as given."""
    from bert_jax.data.store import TokenStore

    tokenizer = TokenStore(tiny_store).tokenizer
    work = Work(tokenizer, Recipe(sentences="line"))
    assert not work.blanks_count and Work(byte_level(), Recipe()).blanks_count
    lines = ["the cat sat .", "why not , dog ?"]
    made = work([("\n".join(lines),)])
    np.testing.assert_array_equal(
        made.tokens, np.concatenate([work.stored[ids] for ids in tokenizer.encode_batch(lines)])
    )


def test_case_where_the_blank_is_a_piece_of_its_own(tokenizer):
    text = "the Qat Xylo ÜX nine"
    ids, _ = tokenizer.encode(text)
    assert "Ġ" in [tokenizer.piece(i) for i in ids], "some word's first piece is the blank alone"
    made = Work(tokenizer, Recipe(case=True))([(text,)])
    word = np.cumsum(begins(made)) - 1
    assert [bool(made.channels["case"][word == n].all()) for n in range(5)] == [False, True, True, True, False]
    assert not any(made.channels["case"][word == n].any() for n in (0, 4))


def test_pieces_that_mark_ends_of_words(tmp_path):
    """Refused in one line however many work; where blanks say what words are, they need not."""
    (tmp_path / "text.txt").write_text("The cat.\n\nThe dog.\n" * 20)
    ends = byte_level("</w>")
    for workers in (1, 2):
        with pytest.raises(BertJaxError, match="mark where words end"):
            prepare([tmp_path / "text.txt"], tmp_path / "store", ends, heldout=0, workers=workers, progress=False)
    made = Work(ends, Recipe(words="whitespace"))([("The cat sat.",)])
    assert begins(made).sum() == 3


def test_a_pipe_is_refused(tokenizer, tmp_path):
    """Both sides are looked for first, and what was read of a pipe would be lost."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("The cat.\n"), daemon=True)
    writer.start()
    with pytest.raises(BertJaxError, match="only once"):
        prepare([pipe], tmp_path / "store", tokenizer, progress=False)
    assert not (tmp_path / "store").exists()
    pipe.open("rb").read()  # lets the writer end
    writer.join(10)


def test_names_of_the_files_of_a_partition(tmp_path, monkeypatch, tokenizer):
    """lang=de is a folder here, not a language."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lang=de").mkdir()
    (tmp_path / "lang=de" / "a.txt").write_text("The cat.\n\nThe dog.\n")
    prepare(["lang=de/*.txt"], tmp_path / "store", tokenizer, heldout=0, workers=1, progress=False)
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    assert manifest["sources"] == [{"name": "a.txt", "bytes": 19}]


def test_text_that_the_tokenizer_does_not_know_is_warned_of(tiny_store, tmp_path, caplog):
    """By language where there are several, and not for a stray character; the tokenizer is found in the store that has it."""
    from bert_jax import tokenizers

    known, foreign = "the cat sat .\n\n" * 300, "кошка сидит the\n\n" * 100
    for name, text in (("known", known), ("foreign", foreign), ("stray", "the cat sat on a ☃ .\n\n" + known)):
        (tmp_path / name).write_text(text)
    tokenizer = tokenizers.load(tiny_store)
    prepare([tmp_path / "stray"], tmp_path / "a", tokenizer, heldout=0, workers=1, progress=False)
    assert "unknown" not in caplog.text
    prepare([f"en={tmp_path}/known", f"ru={tmp_path}/foreign"], tmp_path / "b", tokenizer, heldout=0, workers=1, progress=False)
    said = [record.getMessage() for record in caplog.records if "unknown" in record.getMessage()]
    assert len(said) == 1 and "66.7% of the tokens in ru are unknown to the tokenizer ([UNK])" in said[0]


def test_text_without_sentence_ends_is_warned_of(tiny_store, tmp_path, caplog):
    """Not where lines are sentences, and not for a long sentence among others."""
    from bert_jax import tokenizers

    tokenizer = tokenizers.load(tiny_store)
    endless = "the cat sat on the mat " * 50
    (tmp_path / "endless").write_text(f"{endless}\n\n" * 10)
    (tmp_path / "usual").write_text(f"{endless}\n\n" + "the cat sat .\n\n" * 100)
    for name, sentences, said in (("usual", "punkt", False), ("endless", "line", False), ("endless", "punkt", True)):
        caplog.clear()
        prepare([tmp_path / name], tmp_path / f"{name}-{sentences}", tokenizer, heldout=0, sentences=sentences, workers=1,
                progress=False)
        assert ("a sentence has 300 tokens on average" in caplog.text) == said
