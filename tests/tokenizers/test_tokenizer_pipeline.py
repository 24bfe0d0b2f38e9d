"""PipelineTokenizer: names of special pieces, literal text, what save keeps, and what is refused."""

import json
import logging
import pickle

import numpy as np
import pytest

from bert_jax import tokenizers
from bert_jax.errors import BertJaxError
from bert_jax.tokenizers.pipeline import PipelineTokenizer

FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]


def added(content, id, **flags):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": content, **plain, **flags}


def unigram():
    """XLM-R's form, a dozen pieces. Special pieces have the best of all scores, as they have in the real files."""
    words = [("▁", -4.0), ("▁a", -2.0), ("▁cat", -3.0), ("s", -3.5), ("<", -5.0), (">", -5.0), ("m", -6.0), ("k", -6.0)]
    vocabulary = [*((piece, 0.0) for piece in FAIRSEQ), *words, ("<mask>", 0.0)]
    marker = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*(added(piece, i) for i, piece in enumerate(FAIRSEQ)), added("<mask>", 12, lstrip=True)],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": marker,
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", 2],
            "cls": ["<s>", 0],
            "trim_offsets": True,
            "add_prefix_space": True,
        },
        "decoder": marker,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": False},
    }


def byte_level():
    """RoBERTa's form, in which merges could spell <s>."""
    pieces = [*FAIRSEQ, "<", "s", ">", "a", "t", "Ġ", "Ċ", "Ġa", "at", "s>", "<mask>"]
    content = unigram()
    content["added_tokens"][-1]["id"] = 14
    merges = ["Ġ a", "a t", "s >", "< s>"]
    model = {"type": "BPE", "unk_token": None, "vocab": {p: i for i, p in enumerate(pieces)}, "merges": merges}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return content | {"normalizer": None, "pre_tokenizer": level, "decoder": level, "model": model}


def word_level(extra=(), **changes):
    """Words between blanks; brackets stay on, so that nothing but hiding keeps [MASK] from being itself."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", *extra]
    content = unigram() | {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {piece: i for i, piece in enumerate(pieces)}},
    }
    return content | changes


def make(content, **beside):
    return PipelineTokenizer(json.dumps(content).encode(), **beside)


def roles(tokenizer):
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    return [tokenizer.piece(i) for i in ids]


@pytest.mark.parametrize("content", [unigram(), byte_level(), word_level()], ids=["unigram", "bpe", "words"])
def test_specials_in_a_corpus_are_text(content):
    tokenizer = make(content)
    forbidden = [i for i in tokenizer.special_ids if i != tokenizer.unk_id]
    texts = [text for i in tokenizer.special_ids for text in (tokenizer.piece(i), f"a{tokenizer.piece(i)} a", " " * 300)]
    texts += [" " * n + tokenizer.piece(i) for i in forbidden for n in range(90, 110)]
    assert not np.isin(np.concatenate(tokenizer.encode_batch(texts)), forbidden).any()
    mask = tokenizer.piece(tokenizer.mask_id)
    assert tokenizer.mask_id in tokenizer.encode(f"a {mask}", special=True).ids
    assert tokenizer.mask_id not in tokenizer.encode(f"a {mask}").ids


def test_text_around_literal_specials_is_cut_as_ever():
    tokenizer = make(unigram())
    assert [tokenizer.piece(i) for i in tokenizer.encode("<s> cats").ids] == ["▁", "<", "s", ">", "▁cat", "s"]
    content = byte_level()
    content["pre_tokenizer"]["use_regex"] = False
    tokenizer = make(content)
    assert [tokenizer.piece(i) for i in tokenizer.encode("<s> at").ids] == ["<", "s>", "Ġa", "t"]


def test_names_of_special_pieces():
    """Those given win; then those that the file uses; then the well-known ones. bos and eos stand in for cls and sep."""
    assert roles(make(unigram())) == ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    more = word_level(["<m>", "<c>", "<e>", "<p>"])
    assert roles(make(more)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    settings = {"mask_token": "<m>", "bos_token": {"content": "<c>", "lstrip": False}, "eos_token": "<e>", "sep_token": None}
    assert roles(make(more, settings=settings)) == ["[PAD]", "[UNK]", "<c>", "<e>", "<m>"]
    assert roles(make(more, settings=settings, special_map={"cls_token": "[CLS]"}))[2:4] == ["[CLS]", "<e>"]
    decoder = {"added_tokens_decoder": {"7": {"content": "<m>", "special": True}}}
    assert roles(make(more, settings=settings | decoder, special_map={"mask_token": "[MASK]"}))[4] == "<m>"
    padded = more | {"padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
                                 "pad_id": 10, "pad_type_id": 0, "pad_token": "<p>"}}  # fmt: skip
    assert roles(make(padded))[0] == "<p>"


def test_every_special_piece_must_be_there():
    content = word_level()
    for piece in ("[PAD]", "[MASK]"):
        del content["model"]["vocab"][piece]
    with pytest.raises(BertJaxError, match=r"lacks the special pieces for pad \(\[PAD\] or <pad>\), mask \(\[MASK\] or"):
        make(content)
    with pytest.raises(BertJaxError, match=r"lacks the special pieces for sep \(<end>\)"):
        make(unigram(), settings={"sep_token": "<end>"})


def test_holes_and_added_tokens():
    content = word_level()
    content["model"]["vocab"] |= {"cow": 8, "far": 11}
    tokenizer = make(content)
    assert tokenizer.vocab_size == 12 and tokenizer.special_ids == (0, 1, 2, 3, 4, 7, 9, 10)
    assert [tokenizer.piece(i) for i in (7, 8, 9)] == ["<hole 7>", "cow", "<hole 9>"]
    assert tokenizer.encode("a far cow").ids.tolist() == [5, 11, 8]
    assert tokenizer.decode([5, 7, 8]) == "a cow"
    assert pickle.loads(pickle.dumps(tokenizer)).special_ids == tokenizer.special_ids

    tokenizer = make(word_level(added_tokens=[added("<new>", 7, special=False), added("<ent>", 8)]))
    assert tokenizer.vocab_size == 9 and tokenizer.special_ids == (0, 1, 2, 3, 4, 8)
    assert tokenizer.encode("cat <new> <ent>").ids.tolist() == [6, 7, 1]
    assert tokenizer.encode("cat<new><ent>", special=True).ids.tolist() == [6, 7, 8]


def test_added_tokens_that_are_renumbered_or_collide(caplog):
    tokenizer = make(word_level(added_tokens=[added("<new>", 20)]))
    assert "'<new>' has id 20 in its file, but" in caplog.text and len(caplog.records) == 1
    assert tokenizer.piece_id("<new>") == 7 and tokenizer.vocab_size == 8
    content = word_level(added_tokens=[added("<new>", 7)])
    content["model"]["vocab"] = content["model"]["vocab"] | {"a": 5, "cat": 7}
    with pytest.raises(BertJaxError, match="ids collide: 'cat' and '<new>' both have id 7"):
        make(content)
    with pytest.raises(BertJaxError, match="damaged added tokens"):
        make(word_level(added_tokens=[added("", 7)]))


def test_more_special_pieces_by_name():
    """transformers takes those that tokenizer_config.json lists out of the text, whether tokenizer.json adds them or not."""
    tokenizer = make(word_level(["<q>"]), settings={"additional_special_tokens": ["<q>"]})
    assert tokenizer.special_ids == (0, 1, 2, 3, 4, 7)
    assert tokenizer.encode("a<q>a", special=True).ids.tolist() == [5, 7, 5]
    assert tokenizer.encode("a <q>").ids.tolist() == [5, 1]
    assert make(word_level(["<q>"])).encode("a <q>").ids.tolist() == [5, 7]


def test_truncation_and_padding_are_kept_but_not_applied(tmp_path):
    limits = {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 6}, "direction": "Right", "pad_to_multiple_of": None,
                    "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"},
    }  # fmt: skip
    limited, free = make(unigram() | limits), make(unigram())
    text = "a cats a cats a cats"
    for tokenizer in (limited, free):
        for special in (False, True):
            assert len(tokenizer.encode(text, special=special).ids) == 9
        assert len(tokenizer.encode("a").ids) == 1 and len(tokenizer.encode_batch([text])[0]) == 9
        assert len(tokenizer.build(tokenizer.encode(text).ids)[0]) == 11
    assert limited.hash == free.hash
    limited.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(json.dumps(unigram() | limits))


def test_save_writes_the_same_bytes_and_names(tmp_path, caplog):
    content = b"  " + json.dumps(unigram(), indent=3).encode() + b"\n\n"
    settings = {"tokenizer_class": "XLMRobertaTokenizerFast", "model_max_length": 512, "auto_map": {"AutoTokenizer": "x.Y"}}
    special_map = {"mask_token": added("<mask>", 12, lstrip=True)}
    tokenizer = PipelineTokenizer(content, settings=settings, special_map=special_map)
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == content
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written == {
        "tokenizer_class": "XLMRobertaTokenizerFast",
        "model_max_length": 512,
        **{"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"},
    }
    assert json.loads((tmp_path / "special_tokens_map.json").read_text()) == special_map
    again = tokenizers.load(tmp_path)
    assert again.hash == tokenizer.hash and again.settings == written and not caplog.records
    make(unigram()).save(tmp_path / "bare")
    assert json.loads((tmp_path / "bare/tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_hash_tells_pipelines_apart():
    tokenizer = make(unigram())
    assert PipelineTokenizer(json.dumps(unigram(), indent=1).encode()).hash == tokenizer.hash
    assert make(unigram(), settings={"model_max_length": 3}).hash == tokenizer.hash
    score, prefix, ends = unigram(), unigram(), unigram()
    score["model"]["vocab"][6] = ("▁cat", -3.25)
    prefix["pre_tokenizer"]["prepend_scheme"] = "first"
    ends["post_processor"]["sep"] = ["<s>", 0]
    others = [make(score), make(prefix), make(ends), make(unigram(), settings={"sep_token": "<s>"})]
    assert len({tokenizer.hash, *(other.hash for other in others)}) == 5


def test_pickling_and_decoding():
    tokenizer = make(unigram(), settings={"model_max_length": 9}, special_map={"mask_token": "<mask>"})
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.hash == tokenizer.hash and again.settings == tokenizer.settings
    assert again.encode("a cats").ids.tolist() == tokenizer.encode("a cats").ids.tolist() == [5, 6, 7]
    assert tokenizer.decode([5, 6, 7]) == "a cats"
    assert "<mask>" in tokenizer.decode([0, 5, 12, 2])
    assert tokenizer.lowercase is False
    assert make(unigram() | {"normalizer": {"type": "Lowercase"}}).lowercase is True


def test_word_starts():
    tokenizer = make(unigram())
    assert [tokenizer.piece(i) for i in np.flatnonzero(~tokenizer.word_starts())] == ["s", "m", "k"], "< and > are no letters"
    tokenizer = make(byte_level())
    assert [tokenizer.piece(i) for i in np.flatnonzero(~tokenizer.word_starts())] == ["<", "s", ">", "a", "t", "at", "s>"]
    assert make(word_level()).word_starts().all()
    content = word_level(["##s"])
    content["model"] |= {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    tokenizer = make(content)
    assert np.flatnonzero(~tokenizer.word_starts()).tolist() == [7]
    content = byte_level()
    content["model"]["end_of_word_suffix"] = "</w>"
    with pytest.raises(BertJaxError, match="mark where words end"):
        make(content).word_starts()


def test_offsets_and_batches():
    tokenizer = make(byte_level())
    ids, offsets = tokenizer.encode("a  at\n")
    assert ids.dtype == offsets.dtype == np.int32 and offsets.shape == (len(ids), 2)
    assert [tokenizer.piece(i) for i in ids] == ["a", "Ġ", "Ġa", "t", "Ċ"]
    assert offsets.tolist() == [[0, 1], [2, 2], [3, 4], [4, 5], [5, 6]]  # trimmed of blanks, as its file asks
    assert tokenizer.encode("").offsets.shape == (0, 2) and tokenizer.encode_batch(["", "a"])[0].shape == (0,)
    with pytest.raises(BertJaxError, match="text 1 is a bytes"):
        tokenizer.encode_batch(["a", b"a"])


def test_a_file_without_a_post_processor_adds_nothing():
    tokenizer = make(word_level(post_processor=None))
    ids, segments = tokenizer.build([5, 6], [6])
    assert ids.tolist() == [5, 6, 6] and segments.tolist() == [0, 0, 1] and ids.dtype == segments.dtype == np.int32


def test_loose_files_with_added_tokens(tmp_path, caplog):
    """vocab.txt and added_tokens.json, as slow tokenizers of transformers 4 wrote them."""
    transformers = pytest.importorskip("transformers")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<ent>"]}')
    (tmp_path / "added_tokens.json").write_text('{"<ent>": 9, "covid": 8}')
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    ours, peer = tokenizers.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.kind == "pipeline" and ours.vocab_size == len(peer) == 10 and ours.special_ids == (0, 1, 2, 3, 4, 9)
    text = "A Covid cats <ent>[MASK]"
    assert ours.encode(text, special=True).ids.tolist() == peer(text, add_special_tokens=False)["input_ids"]
    assert ours.encode("covid").ids.tolist() == [8] and ours.build([8])[0].tolist() == [2, 8, 3]
    ours.save(tmp_path / "saved")
    (tmp_path / "saved/config.json").write_text('{"model_type": "bert"}')
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert ours.encode(text, special=True).ids.tolist() == peer(text, add_special_tokens=False)["input_ids"]
    assert tokenizers.load(tmp_path / "saved").hash == ours.hash
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and record.name == "bert_jax"]


def test_other_names_in_a_vocab_txt(tmp_path):
    pieces = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", "a", "##b"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    names = zip(("pad", "unk", "cls", "sep", "mask"), pieces, strict=False)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({f"{role}_token": piece for role, piece in names}))
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.kind == "pipeline" and roles(tokenizer) == pieces[:5]
    assert tokenizer.encode("ab é").ids.tolist() == [5, 6, 1]
    assert tokenizer.build([5], [6])[0].tolist() == [2, 5, 3, 6, 3]


def test_files_of_relatives_are_refused_by_name(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "camembert"}')
    with pytest.raises(BertJaxError, match="belongs to a camembert, which has rules of its own, not the ids of XLM-R"):
        tokenizers.load(tmp_path)
