"""Loading: every wrong file is refused in one line that says what to do; importing pulls in no accelerator library."""

import json
import pathlib
import pickle
import subprocess
import sys

import pytest
import weights

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
        ("vocab.txt", b"[PAD]\nabc\0\n", "holds a NUL byte"),
        ("vocab.txt", b"", "is empty"),
        ("vocab.txt", b"\n \n\n", "is empty"),
        ("vocab.txt", "\n".join(SPECIALS[:3]).encode(), r"lacks \[SEP\] \[MASK\]"),
        ("spiece.model", JUNK, "not a SentencePiece model"),
        ("spiece.model", b"", "not a SentencePiece model"),
        ("tokenizer.json", JUNK, "is not JSON"),
        ("tokenizer.json", b"[1]", "a JSON object is needed"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab', "is not JSON"),
        ("tokenizer.json", b"[" * 100_000, "is not JSON"),
        ("tokenizer.json", b"{}", "no model with a vocabulary"),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": []}}', "no model with a vocabulary"),
        ("tokenizer.json", b'{"model": {"type": "Neural", "vocab": {"a": 0}}}', "'Neural': the tokenizers library knows"),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}', "without an unknown piece"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece", "vocab": {"a": 0}}}', r"'\[UNK\]' is not in the vocabulary"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": -1}}}', "ids must be whole numbers"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 4000000000}}}', "ids must be whole numbers"),
        ("vocab.json", b'{"a": 0}', "one of them is not there"),
        ("sentencepiece.bpe.model", JUNK, "not a SentencePiece model"),
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
        (lambda content: content["model"].update(unk_token="<unk>"), "'<unk>' is not in the vocabulary"),
        (lambda content: content["model"]["vocab"].update(extra=5), "'a' and 'extra' both have id 5"),
        (lambda content: content["model"]["vocab"].pop("[UNK]"), r"'\[UNK\]' is not in the vocabulary"),
        (lambda content: content.update(normalizer={"type": "Nonsense"}), "cannot be run by the tokenizers library"),
        (lambda content: content.update(normalizer=["NFC"]), "normalizer must be an object or null"),
        (lambda content: content["model"].update(max_input_chars_per_word="x"), "max_input_chars_per_word of the model must"),
        (lambda content: content["added_tokens"].append({"content": "<new>"}), "damaged added tokens"),
        (lambda content: content["post_processor"].update(single=[]), "cannot be run|leaves out a text"),
        (lambda content: content["post_processor"]["special_tokens"].pop("[CLS]"), r"no special token '\[CLS\]'"),
    ],
)
def test_damaged_pipelines(tmp_path, change, match):
    WordPieceTokenizer([*SPECIALS, "a"]).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    refuse(path, match)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("tokenizer_config.json", '{"do_lower_case": "no"}', "do_lower_case of .* must be true, false or null"),
        ("tokenizer_config.json", '{"mask_token": 3}', "mask_token names no piece"),
        ("tokenizer_config.json", '{"mask_token": "<m>"}', "lacks <m>"),
        ("tokenizer_config.json", '{"tokenizer_class": "BertJapaneseTokenizer"}', "belongs to a BertJapaneseTokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("special_tokens_map.json", '{"additional_special_tokens": "<x>"}', "must be a list of pieces"),
        ("added_tokens.json", '{"<x>": "7"}', "must map pieces to ids"),
    ],
)
def test_wrong_companions(tmp_path, name, content, match):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "a"]))
    (tmp_path / name).write_text(content)
    with pytest.raises(BertJaxError, match=match) as error:
        tokenizers.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_blank_and_repeated_lines_leave_holes(tmp_path, caplog):
    """As transformers reads them: the last of two equal lines has the id, no line moves another."""
    transformers = pytest.importorskip("transformers")
    pieces = [*SPECIALS, "cat", "", "dog", "cat", "##s ", "", ""]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    ours, peer = tokenizers.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert "2 blank or repeated lines" in caplog.text and len(caplog.records) == 1
    assert ours.encode("cats dog bird").ids.tolist() == [8, 9, 7, 1]
    assert peer("cats dog bird", add_special_tokens=False)["input_ids"] == [8, 9, 7, 1]
    assert ours.vocab_size == 10 and ours.piece(5) == "<hole 5>" and ours.special_ids == (0, 1, 2, 3, 4, 5, 6)
    with pytest.raises(BertJaxError, match="'<hole 5>' is not one of"):
        ours.piece_id("<hole 5>")
    assert ours.decode([8, 5, 9]) == "cats"
    ours.save(tmp_path / "saved")
    for again in (tokenizers.load(tmp_path / "saved"), tokenizers.load(tmp_path / "saved/vocab.txt")):
        assert again.hash == ours.hash and again.vocab_size == 10
    assert pickle.loads(pickle.dumps(ours)).hash == ours.hash
    with pytest.raises(BertJaxError, match="holds 'a' twice"):
        WordPieceTokenizer([*SPECIALS, "a", "a"])


def test_facts_of_the_configuration_travel(tmp_path):
    """model_max_length and the like come out as they came in; paths and code of another machine do not."""
    folder = tmp_path / "in"
    WordPieceTokenizer([*SPECIALS, "a", "##b"], lowercase=False).save(folder)
    facts = {"model_max_length": 512, "strip_accents": None, "do_lower_case": False, "tokenizer_class": "ElectraTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**facts, "name_or_path": "/home/somebody"}))
    for name in ("vocab.txt", "tokenizer.json"):
        tokenizer = pickle.loads(pickle.dumps(tokenizers.load(folder / name)))
        tokenizer.save(tmp_path / "out")
        written = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
        assert facts.items() <= written.items() and "name_or_path" not in written
        assert tokenizer.hash == WordPieceTokenizer([*SPECIALS, "a", "##b"], lowercase=False).hash


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("bert-base-uncased-vocab.txt", "5d600ce0c887"),
        ("bert-base-chinese-vocab.txt", "a7a9fc7cac3b"),
        ("albert-base-v2-spiece.model", "ee119a52981e"),
    ],
)
def test_hashes_of_version_0_1(data_dir, name, begins):
    """Token stores carry these: a hash that changed without a change of ids would make them all useless."""
    assert tokenizers.load(data_dir / "vocab" / name).hash.startswith(begins)


def test_plain_bert_tokenizer_json_stays_wordpiece(data_dir):
    """all-MiniLM's: old, with truncation and padding to 128 that are none of our business."""
    folder = weights.weights_dir() / "all-MiniLM-L6-v2"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: make weights fetches it")
    tokenizer = tokenizers.load(folder / "tokenizer.json")
    assert tokenizer.kind == "wordpiece" and tokenizer.settings["model_max_length"] == 512
    assert tokenizer.hash == tokenizers.load(data_dir / "vocab/bert-base-uncased-vocab.txt").hash
    assert len(tokenizer.encode("word " * 300).ids) == 300


def test_damaged_merges(tmp_path):
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "<mask>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.kind == "pipeline" and tokenizer.encode("ab").ids.tolist() == [6]
    for merges, match in (("a b\na\n", "merges.txt is damaged: line 2"), ("a c\n", "cannot be run by the tokenizers")):
        (tmp_path / "merges.txt").write_text(merges)
        with pytest.raises(BertJaxError, match=match):
            tokenizers.load(tmp_path)
    del vocabulary["<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(BertJaxError, match="the vocabulary lacks <mask>"):
        tokenizers.load(tmp_path)


def test_old_smiles_checkpoints(caplog):
    """rxnfp and rxnmapper: vocab.txt, and {} as tokenizer_config.json."""
    for name in ("rxnfp-pretrained", "rxnfp-classifier", "rxnmapper"):
        folder = weights.weights_dir() / name
        if not folder.is_dir():
            pytest.skip(f"no {folder}: make weights fetches it")
        tokenizer = tokenizers.load(folder)
        assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.mask_id) == (0, 11, 12, 14)
        assert tokenizer.vocab_size == 591 and not tokenizer.lowercase
    assert "it holds capitals" in caplog.text


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


@pytest.mark.parametrize("added", [False, True], ids=["plain", "with a piece more"])
def test_rules_of_the_configuration_come_before_those_of_the_file(added, tmp_path, caplog):
    """As in transformers, for every class but the one that runs the file as it is."""
    transformers = pytest.importorskip("transformers")
    plain = WordPieceTokenizer([*SPECIALS, "cat", "É", "é", "e", "c", "##at", "C"], lowercase=True)
    content = json.loads(plain._marked.to_str())
    if added:
        content["added_tokens"].append({"id": plain.vocab_size, "content": "[X]", "single_word": False, "lstrip": False,
                                        "rstrip": False, "normalized": False, "special": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for rules, told in (({"do_lower_case": True}, False), ({"do_lower_case": False}, True),
                        ({"do_lower_case": False, "strip_accents": None}, True), ({"strip_accents": False}, True)):
        for kind in ("BertTokenizer", "PreTrainedTokenizerFast"):
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(rules | {"tokenizer_class": kind}))
            caplog.clear()
            ours, theirs = tokenizers.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
            assert ours.build(ours.encode("cat É Cat").ids)[0].tolist() == theirs("cat É Cat")["input_ids"], (rules, kind)
            assert ("it are used, not its own rules" in caplog.text) == (told and kind == "BertTokenizer"), (rules, kind)


def test_other_classes_have_other_defaults(tmp_path):
    """HerBERT's keeps capitals and accents, and says so nowhere but in its file."""
    plain = WordPieceTokenizer([*SPECIALS, "Cat", "É"], lowercase=False)
    content = json.loads(plain._marked.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "HerbertTokenizer"}))
    assert tokenizers.load(tmp_path).encode("Cat É").ids.tolist() == [5, 6]


def test_a_cased_vocabulary_with_a_piece_more_comes_back_as_it_is(tmp_path):
    """The class that its folder names lower-cases unless it is told not to, and nobody had told it."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "Cat", "cat", "É", "e"]))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[X]": 9}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    ours = tokenizers.load(tmp_path)
    ours.save(tmp_path / "saved")
    again, theirs = tokenizers.load(tmp_path / "saved"), transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.hash == ours.hash
    ids = ours.build(ours.encode("Cat É").ids)[0].tolist()
    assert ids == theirs("Cat É")["input_ids"] == [2, 5, 7, 3]


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


def test_the_class_may_stand_in_the_model_s_settings(tmp_path):
    """As in old repositories: Japanese words would be cut as BERT's are, without a word."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "a"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    (tmp_path / "config.json").write_text(json.dumps({"tokenizer_class": "BertJapaneseTokenizer"}))
    refuse(tmp_path, "belongs to a BertJapaneseTokenizer, which has rules of its own")
    (tmp_path / "config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "word_tokenizer_type": "mecab"}))
    refuse(tmp_path, "belongs to a tokenizer of words by mecab")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "word_tokenizer_type": "basic"}))
    assert tokenizers.load(tmp_path).vocab_size == 6


@pytest.mark.parametrize("kind", [None, "HerbertTokenizer"])
def test_words_that_end_in_a_mark_are_no_byte_level_bpe(kind, tmp_path):
    """HerBERT's files have the names of RoBERTa's; what is not in the vocabulary was dropped without a word."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b</w>", "ab</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind} if kind else {}))
    what = kind or "tokenizer whose words end in </w>"
    refuse(tmp_path, f"belongs to a {what}, which has rules of its own, not byte-level BPE")


def test_a_file_without_a_template_adds_nothing(tmp_path):
    transformers = pytest.importorskip("transformers")
    content = json.loads(WordPieceTokenizer([*SPECIALS, "cat", "a"], lowercase=True)._marked.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    ours = tokenizers.load(tmp_path)
    ours.save(tmp_path / "saved")
    for folder in (tmp_path, tmp_path / "saved"):
        again, theirs = tokenizers.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
        assert again.build(again.encode("a cat").ids)[0].tolist() == theirs("a cat")["input_ids"] == [6, 5]
