"""Units are marked where they stand, survive every interruption, and leave the store what it was."""

import json
import shutil

import numpy as np
import pytest

from bert_jax import tokenizers
from bert_jax.cli import main
from bert_jax.data import annotate, phrases
from bert_jax.data.annotate import annotate_entities, annotate_phrases, choose
from bert_jax.data.gazetteer import read_names
from bert_jax.data.prepare import prepare
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.files import locked
from tests.data.test_prepare import contents


@pytest.fixture
def store(text, tokenizer, tmp_path):
    """300 documents in which "road mat" and "the cat sat on it" are frequent."""
    path, documents = text(300)
    documents = [document.replace("dog", "road mat").replace(" said ", " the cat sat on it ") for document in documents]
    path.write_text("\n\n".join(documents) + "\n")
    prepare([path], tmp_path / "store", tokenizer, heldout=0.2, workers=1, shard_tokens=2000, progress=False)
    return tmp_path / "store"


def units(path, side: str, channel: str) -> list[str]:
    """The text of every unit: a word with 0 and the words with 1 that follow it."""
    store = TokenStore(path)
    split = store.split(side)
    raw = split.stretch(0, split.tokens)
    marks = split.gather_channel(channel, split.documents[:-1], np.diff(split.documents)).astype(bool)
    starts = raw >= split.word_start
    assert (marks[1:] == marks[:-1])[~starts[1:]].all()  # all pieces of a word say the same
    assert not marks[split.sentences[:-1]].any()  # no unit crosses a sentence
    begins = np.flatnonzero(starts)
    pieces = [[store.tokenizer.piece(int(i)) for i in word] for word in np.split(raw & (split.word_start - 1), begins[1:])]
    words = ["".join(piece.removeprefix("##") for piece in word) for word in pieces]
    found, current = [], []
    for word, goes_on in zip(words, marks[begins], strict=True):
        if not goes_on:
            found += [" ".join(current)] * (len(current) > 1)
            current = []
        current.append(word)
    return found + [" ".join(current)] * (len(current) > 1)


def test_phrases(store):
    summary = annotate_phrases(store, minimum=20, top=0.6, progress=False)
    for side in ("train", "heldout"):
        found = units(store, side, "phrases")
        assert len(found) == summary.units[side] > 0
        assert {"road mat", "the cat sat on it"} <= set(found)
        assert all(2 <= len(unit.split()) <= 5 for unit in found)
    opened = TokenStore(store)
    assert opened.split("train").channels == ("phrases",) and len(opened.manifest.splits["train"].shards) > 3
    (file,) = store.glob("phrases/*/phrases.tsv")
    header, *lines = file.read_text().splitlines()
    assert header == "phrase\tcount\tpmi" and len(lines) == summary.entries
    rows = [(text, int(count), float(score)) for text, count, score in (line.split("\t") for line in lines)]
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)
    assert set(units(store, "train", "phrases")) <= {text for text, _, _ in rows}
    joined = " ".join(w if w.isalnum() else "|" for w in _words(opened, "train"))
    for text, times, _ in rows[:5]:  # where no sentence or full stop comes between
        assert f" {joined} ".replace(" ", "  ").count(f" {text} ".replace(" ", "  ")) == times
    inside = sum(len(unit.split()) for unit in units(store, "train", "phrases"))
    assert 0 < summary.share["train"] <= inside / len(_words(opened, "train")) * 2
    assert "phrases:" in str(summary) and "in heldout" in str(summary)


def _words(store, side):
    split = store.split(side)
    raw = split.stretch(0, split.tokens)
    begins = np.flatnonzero(raw >= split.word_start)
    words = np.split(raw & (split.word_start - 1), begins[1:])
    return ["".join(store.tokenizer.piece(int(i)).removeprefix("##") for i in word) for word in words]


def test_chunks_make_no_difference(store, monkeypatch):
    annotate_phrases(store, minimum=20, top=0.5, progress=False)
    annotate_entities(store, [_names(store, "road mat", "the cat", "cat sat on", "number one")], progress=False)
    whole = contents(store)
    for channel in ("phrases", "entities"):
        shutil.rmtree(store / channel)
    (store / "annotations.json").unlink()
    for function in (phrases.words, phrases.chunks):
        monkeypatch.setitem(function.__kwdefaults__ or {}, "size", 50)
        monkeypatch.setattr(function, "__defaults__", (50,))
    annotate_phrases(store, minimum=20, top=0.5, progress=False)
    annotate_entities(store, [_names(store, "road mat", "the cat", "cat sat on", "number one")], progress=False)
    assert contents(store) == whole


def _names(store, *names, file="names.txt"):
    path = store.parent / file
    path.write_text("\n".join(names) + "\n")
    return path


def test_names_longest_first(store):
    names = ["Road Mat", "the cat", "cat sat on", "the cat sat on it", "number", "absent name", "", "..."]
    annotate_entities(store, [_names(store, *names)], progress=False)
    found = units(store, "train", "entities")
    words = " ".join(_words(TokenStore(store), "train"))
    assert set(found) <= {"road mat", "the cat", "cat sat on", "the cat sat on it"}
    assert found.count("road mat") == f" {words} ".replace(" ", "  ").count(" road  mat ") > 10
    assert found.count("the cat sat on it") == f" {words} ".replace(" ", "  ").count(" the  cat  sat  on  it ") > 10
    assert "the cat" in found


def test_names_match_whole_words_within_sentences(tokenizer, tmp_path):
    (tmp_path / "t.txt").write_text("the cats on. mat road cat\nsat catsat the cat sat\nsat catx sat\n")
    options = dict(documents="file", sentences="line", heldout=0, workers=1, progress=False)
    prepare([tmp_path / "t.txt"], tmp_path / "s", tokenizer, **options)
    (tmp_path / "n.txt").write_text("the cat\ncat sat\n")
    annotate_entities(tmp_path / "s", [tmp_path / "n.txt"], progress=False)
    found = units(tmp_path / "s", "train", "entities")
    assert len(found) == 1 and found[0] in ("the cat", "cat sat")


def test_real_chinese_names(data_dir, tmp_path):
    """K-BERT's medical table, in text without blanks and in text segmented by them."""
    tokenizer = tokenizers.load(data_dir / "vocab" / "bert-base-chinese-vocab.txt")
    (tmp_path / "a.txt").write_text("患者小儿狂犬病三天。\n眼睛 发红 ， 眼睛发红 。\n咽喉部充血，眼睛发红。\n")
    eyes = "眼 睛 发 红"
    expected = {"tokenizer": ["小 儿 狂 犬 病", eyes, eyes, "咽 喉 部 充 血", eyes], "whitespace": ["眼睛 发红"]}
    for words, wanted in expected.items():
        out = tmp_path / words
        options = dict(documents="file", sentences="line", words=words, heldout=0, workers=1, progress=False)
        prepare([tmp_path / "a.txt"], out, tokenizer, **options)
        summary = annotate_entities(out, [data_dir / "kg" / "Medical.spo"], progress=False)
        assert summary.entries > 10_000
        assert units(out, "train", "entities") == wanted


def test_names_in_files(tmp_path, data_dir):
    (tmp_path / "a.txt").write_text("\ufeffNew  York \n\nNew York\n--\n")
    (tmp_path / "b.spo").write_text("Tim Cook\tCEO\tApple\n\nBeijing\tcapital\tChina\n")
    assert read_names([tmp_path / "a.txt", tmp_path / "b.spo"]) == ["New York", "Tim Cook", "Apple", "Beijing", "China"]
    assert len(read_names([data_dir / "kg" / "HowNet.spo"])) > 40_000
    (tmp_path / "c.spo").write_text("a\tb\tc\na\tb\n")
    for name, content, words in (("c.spo", None, "c.spo, line 2: 2 columns"), ("d.txt", b"\xff\n", "not UTF-8 at byte 0"),
                                 ("e.txt", b"\n..\n", "no name in it"), ("f.txt", None, "cannot be read")):  # fmt: skip
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(BertJaxError, match=words):
            read_names([tmp_path / name])


def test_intervals():
    """Against the rule applied one by one."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        spans = {(int(s), int(s + n)) for s, n in zip(rng.integers(0, 40, 30), rng.integers(1, 7, 30), strict=True)}
        starts, ends = np.array(sorted(spans, key=lambda _: rng.random())).T
        priority = rng.integers(0, 5, len(starts)).astype(np.uint64)
        kept = choose(starts, ends, priority)
        whole = [i for i in range(len(starts)) if not any(
            starts[j] <= starts[i] and ends[i] <= ends[j] and i != j for j in range(len(starts)))]  # fmt: skip
        expected = []
        for i in sorted(whole, key=lambda i: (-int(priority[i]), starts[i])):
            if all(ends[i] <= starts[j] or ends[j] <= starts[i] for j in expected):
                expected.append(i)
        assert kept.tolist() == sorted(expected, key=lambda i: starts[i])
    assert len(choose(np.empty(0, int), np.empty(0, int), np.empty(0, np.uint64))) == 0
    many = np.arange(200_000)  # one cluster: settled in a few rounds, not one by one
    kept = choose(many, many + 5, np.random.default_rng(0).integers(0, 1 << 63, len(many), dtype=np.uint64))
    assert (np.diff(kept) >= 5).all() and (np.diff(kept) < 10).all()


def test_the_store_stays_what_it_was(store, warnings_of):
    before, base = TokenStore(store), contents(store)
    names = _names(store, "road mat")
    annotate_entities(store, [names], progress=False)
    first = TokenStore(store)
    annotate_phrases(store, minimum=20, progress=False)
    after = TokenStore(store)
    assert base.items() <= contents(store).items()
    assert before.identity() == first.identity() == after.identity(["case"])  # a run that uses none goes on
    assert first.identity(["entities"]) == after.identity(["entities"]) != before.identity(["entities"])
    assert after.split("train").channels == ("entities", "phrases")
    annotate_entities(store, [names], progress=False)
    assert "entities are replaced by the same" in " ".join(warnings_of())
    assert TokenStore(store).identity(["entities", "phrases"]) == after.identity(["phrases", "entities"])
    annotate_entities(store, [_names(store, "the cat")], progress=False)
    assert "its entities, made with" in " ".join(warnings_of())
    assert TokenStore(store).identity(["entities"]) != after.identity(["entities"])
    assert len(list((store / "entities").iterdir())) == 1


def test_every_file_of_an_annotation_is_watched(store):
    annotate_phrases(store, minimum=20, progress=False)
    files = [path for path in store.glob("phrases/*/*")]
    assert len(files) > 4
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(BertJaxError, match=f"{file.name} was changed"):
            TokenStore(store)
        file.write_bytes(whole)
    for damaged in ("{", "[]", '{"phrases": {}}'):
        (store / "annotations.json").write_text(damaged)
        with pytest.raises(BertJaxError, match="annotations.json is damaged .*: remove it, and annotate"):
            TokenStore(store)


@pytest.mark.parametrize("place", ["phrases.ngrams", "_write_split", "digests", "os.rename", "write_whole", "shutil.rmtree"])
def test_an_interruption_leaves_a_store(store, monkeypatch, place):
    annotate_phrases(store, minimum=20, top=0.1, progress=False)
    before = TokenStore(store).identity(["phrases"])

    def stop(*_, **__):
        raise KeyboardInterrupt

    owner, _, name = place.rpartition(".")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(annotate, owner) if owner else annotate, name, stop)
        with pytest.raises(KeyboardInterrupt):
            annotate_phrases(store, minimum=20, top=0.3, progress=False)
    replaced = TokenStore(store).identity(["phrases"]) != before
    assert replaced == (place == "shutil.rmtree")
    annotate_phrases(store, minimum=20, top=0.3, progress=False)
    assert TokenStore(store).identity(["phrases"]) != before
    assert len(list((store / "phrases").iterdir())) == 1


def test_refusals(store, tmp_path, capsys):
    untouched = contents(store)
    for arguments, words in (
        ([store], "nothing to annotate"),
        ([store, "--phrases", "--top", "0"], "top=0"),
        ([store, "--phrases", "--minimum", "1"], "minimum=1: a phrase occurs at least twice"),
        ([store, "--phrases", "--minimum", "100000"], "no phrase occurs 100000 times: lower the minimum"),
        ([store, "--gazetteer", tmp_path / "absent"], "absent: cannot be read"),
        ([store, "--gazetteer", _names(store, "nobody nowhere")], "none of 1 entities occurs in its train split"),
        ([store, "--gazetteer", _names(store, "the", "cat", file="words.txt")], "a single one is a unit anyway"),
        ([tmp_path / "absent", "--phrases"], "no such token store"),
    ):
        assert main(["annotate", *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    with locked(store):
        assert main(["annotate", str(store), "--phrases"]) == 1
        assert "another run is writing it" in capsys.readouterr().err
    assert contents(store) == untouched and not (tmp_path / "absent").exists()


def test_the_command(store, capsys):
    names = _names(store, "road mat")
    assert main(["annotate", str(store), "--phrases", "--minimum", "20", "--top", "1", "--gazetteer", str(names)]) == 0
    *best, summary, entities = capsys.readouterr().out.splitlines()
    assert len(best) == 20 and all("times, PMI" in line for line in best)
    assert summary.startswith("phrases: ") and entities.startswith("entities: 1 entries")
    assert set(json.loads((store / "annotations.json").read_text())) == {"phrases", "entities"}
