"""A tokenizer.json out of the loose files that came before it: vocab.json with merges.txt, sentencepiece.bpe.model, and
a vocab.txt with more than BERT's own special pieces.

Each gives the pipeline that transformers builds from the same files, but for one thing: the mask of RoBERTa and XLM-R
takes the blank before it, as in the tokenizer.json published with them. transformers 5, given the loose files alone,
leaves that blank in the text, where RoBERTa makes a piece of it.
"""

import base64
from collections.abc import Mapping, Sequence

from bert_jax.errors import BertJaxError
from bert_jax.tokenizers.tokenizer_json import FLAGS, ROLES
from bert_jax.tokenizers.unigram import SPACE, parse_model

FAIRSEQ = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_CONTROLS = ("<unk>", "<s>", "</s>")  # of SentencePiece; fairseq has four of its own in their place


def roberta(vocabulary: Mapping[str, int], merges: str, names: Mapping[str, str], *, prefix: bool, trim: bool) -> dict:
    """Byte-level BPE from the content of vocab.json and merges.txt.

    Args:
      names: the special pieces by role, all in `vocabulary`.
      prefix: a blank is put before the text (add_prefix_space).
      trim: offsets leave blanks out (trim_offsets).
    """
    pairs = []
    for number, line in enumerate(merges.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise BertJaxError(f"merges.txt is damaged: line {number} must hold two pieces with one blank between them")
        pairs.append(pair)
    bytes_ = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": True}
    ends = {role: [names[role], vocabulary[names[role]]] for role in ("sep", "cls")}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocabulary),
        "merges": pairs,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _special(names, vocabulary, lstrip=("mask",)),
        "normalizer": None,
        "pre_tokenizer": bytes_ | {"trim_offsets": True},
        "post_processor": {"type": "RobertaProcessing", **ends, "trim_offsets": trim, "add_prefix_space": prefix},
        "decoder": bytes_ | {"add_prefix_space": True, "trim_offsets": True},
        "model": model,
    }


def xlm_roberta(model: bytes, names: Mapping[str, str]) -> dict:
    """SentencePiece's unigram pieces under fairseq's ids: <s> <pad> </s> <unk>, the pieces from the fourth on, <mask>."""
    proto = parse_model(model)
    found = tuple(piece.piece for piece in proto.pieces[: len(_CONTROLS)])
    if found != _CONTROLS:
        raise BertJaxError(f"not XLM-R's SentencePiece model: it begins with {' '.join(found)}, not {' '.join(_CONTROLS)}")
    vocabulary = [[names[role], 0.0] for role in ("cls", "pad", "sep", "unk")]
    vocabulary += [[piece.piece, piece.score] for piece in proto.pieces[len(_CONTROLS) :]]
    vocabulary.append([names["mask"], 0.0])
    ids = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    marker = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    charsmap = proto.normalizer_spec.precompiled_charsmap
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _special(names, ids, lstrip=("mask",)),
        "normalizer": normalizer if charsmap else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, marker]},
        "post_processor": _template(names, ids, pair=("cls", 0, "sep", "sep", 1, "sep"), segments=False),
        "decoder": marker,
        "model": {"type": "Unigram", "unk_id": ids[names["unk"]], "vocab": vocabulary, "byte_fallback": False},
    }


def bert(
    vocabulary: Mapping[str, int],
    names: Mapping[str, str],
    *,
    lowercase: bool,
    strip_accents: bool | None,
    split_chinese: bool,
) -> dict:
    """WordPiece with BERT's rules and special pieces of any name."""
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": split_chinese,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }
    model = {
        "type": "WordPiece",
        "unk_token": names["unk"],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": dict(vocabulary),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _special(names, vocabulary),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(names, vocabulary, pair=("cls", 0, "sep", 1, "sep"), segments=True),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": model,
    }


def with_added(content: dict, added: Mapping[str, int]) -> dict:
    """`content` and the tokens of an added_tokens.json, which are ordinary pieces unless they are special already."""
    known = {token["content"] for token in content["added_tokens"]}
    more = [
        {"id": i, "content": piece, "special": False, **FLAGS, "normalized": True}
        for piece, i in sorted(added.items(), key=lambda item: item[1])
        if piece not in known
    ]
    return content | {"added_tokens": content["added_tokens"] + more}


def _special(names: Mapping[str, str], ids: Mapping[str, int], lstrip: Sequence[str] = ()) -> list[dict]:
    tokens = [
        {"id": ids[names[role]], "content": names[role], "special": True, **FLAGS, "lstrip": role in lstrip} for role in ROLES
    ]
    return sorted(tokens, key=lambda token: token["id"])


def _template(names: Mapping[str, str], ids: Mapping[str, int], pair: Sequence[str | int], *, segments: bool) -> dict:
    """A post-processor: `pair` lists roles and the two texts, 0 and 1; one text has what comes up to the first SEP."""
    items, segment = [], 0
    for part in pair:
        if part == 1:
            segment = int(segments)
        if isinstance(part, int):
            items.append({"Sequence": {"id": "AB"[part], "type_id": segment}})
        else:
            items.append({"SpecialToken": {"id": names[part], "type_id": segment}})
    special = {names[role]: {"id": names[role], "ids": [ids[names[role]]], "tokens": [names[role]]} for role in ("cls", "sep")}
    return {"type": "TemplateProcessing", "single": items[:3], "pair": items, "special_tokens": special}
