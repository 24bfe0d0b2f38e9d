"""From files to a tokenizer: a directory as `save` or transformers writes it, or one vocabulary file."""

import json
import logging
import os
import pathlib

from bert_jax.errors import BertJaxError
from bert_jax.tokenizers.base import Tokenizer
from bert_jax.tokenizers.unigram import SentencePieceTokenizer
from bert_jax.tokenizers.wordpiece import CONTINUATION, SPECIALS, WordPieceTokenizer

logger = logging.getLogger("bert_jax")

CONFIG = "tokenizer_config.json"


def load(path: str | os.PathLike) -> Tokenizer:
    """Reads spiece.model / *.model, tokenizer.json (WordPiece) or vocab.txt, or a directory that holds one of them.

    In a directory spiece.model comes first, then tokenizer.json, then vocab.txt. The rules (lower case, accents) come
    from the tokenizer_config.json beside the file, else from tokenizer.json itself; a bare vocabulary counts as
    lower-cased exactly if none of its pieces holds a capital, and one warning line says so.

    Raises BertJaxError for a missing path, a file that is no tokenizer, a pipeline other than BERT's or ALBERT's, a
    vocabulary without the five specials, or with a piece twice.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise BertJaxError(f"no tokenizer at {path}: give a directory, vocab.txt, tokenizer.json or a .model file")
    file = _vocabulary_file(path) if path.is_dir() else path
    config = _read_json(file.parent / CONFIG) if (file.parent / CONFIG).is_file() else {}
    try:
        if file.suffix == ".model":
            return _load_sentencepiece(file, config)
        if file.suffix == ".json":
            return _load_tokenizer_json(file, config)
        return _load_vocab(file, config)
    except BertJaxError as error:
        raise BertJaxError(error.args[0] if str(file) in error.args[0] else f"{file}: {error.args[0]}") from error


def _vocabulary_file(directory: pathlib.Path) -> pathlib.Path:
    for name in ("spiece.model", "tokenizer.json", "vocab.txt"):
        if (directory / name).is_file():
            return directory / name
    found = sorted(directory.glob("*.model"))
    if len(found) == 1:
        return found[0]
    raise BertJaxError(f"{directory} holds no tokenizer: it needs spiece.model, tokenizer.json or vocab.txt")


def _load_sentencepiece(file: pathlib.Path, config: dict) -> SentencePieceTokenizer:
    model = _read(file)
    lowercase = config.get("do_lower_case")
    tokenizer = SentencePieceTokenizer(
        model, lowercase=lowercase is not False, strip_accents=not config.get("keep_accents", False)
    )
    normal = [piece for i, piece in enumerate(tokenizer.pieces) if i not in tokenizer.special_ids]
    if lowercase is None and not _lowercase_by_content(file, normal):
        return SentencePieceTokenizer(model, lowercase=False, strip_accents=tokenizer.strip_accents)
    return tokenizer


def _load_vocab(file: pathlib.Path, config: dict) -> WordPieceTokenizer:
    try:
        text = _read(file).decode()
    except UnicodeDecodeError as error:
        raise BertJaxError("not a vocabulary: it is not UTF-8 text with one piece a line") from error
    pieces = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    for number, piece in enumerate(pieces, 1):
        if "\0" in piece or not piece:
            what = "is empty" if not piece else "holds a NUL byte"
            raise BertJaxError(f"not a vocabulary: line {number} {what}, it must hold one piece a line")
    lowercase = config.get("do_lower_case")
    if lowercase is None:
        lowercase = _lowercase_by_content(file, [piece for piece in pieces if not _bracketed(piece)])
    return WordPieceTokenizer(
        pieces,
        lowercase=lowercase,
        strip_accents=config.get("strip_accents"),
        split_chinese=config.get("tokenize_chinese_chars", True),
    )


def _load_tokenizer_json(file: pathlib.Path, config: dict) -> WordPieceTokenizer:
    content = _read_json(file)
    model = content.get("model") or {}
    vocabulary = model.get("vocab")
    # Files of older libraries leave the type out; a WordPiece model is then known by its prefix.
    kind = model.get("type") or ("WordPiece" if "continuing_subword_prefix" in model else None)
    if kind == "Unigram":
        raise BertJaxError("holds a Unigram model: give the spiece.model that it was made from")
    if kind != "WordPiece" or not isinstance(vocabulary, dict):
        raise BertJaxError(f"holds no WordPiece vocabulary (model type {kind}): only that is read from this format")
    normalizer = content.get("normalizer") or {}
    expected = {
        "normalizer": (normalizer.get("type"), "BertNormalizer"),
        "pre_tokenizer": ((content.get("pre_tokenizer") or {}).get("type"), "BertPreTokenizer"),
        "continuing_subword_prefix": (model.get("continuing_subword_prefix"), CONTINUATION),
        "unk_token": (model.get("unk_token"), SPECIALS[1]),
        "max_input_chars_per_word": (model.get("max_input_chars_per_word", 100), 100),
        "clean_text": (normalizer.get("clean_text", True), True),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise BertJaxError(f"not BERT's WordPiece: {name} is {found!r} where {wanted!r} is needed")
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[piece] for piece in pieces] != list(range(len(pieces))):
        raise BertJaxError(f"ids are not 0 to {len(pieces) - 1}, each once: the vocabulary has gaps or shared ids")
    added = [token["content"] for token in content.get("added_tokens", []) if token["content"] not in vocabulary]
    if added:
        raise BertJaxError(f"adds {len(added)} tokens beyond the vocabulary ({added[0]!r} ...): put them into it first")
    rules = {
        "lowercase": config.get("do_lower_case", normalizer.get("lowercase", True)),
        "strip_accents": config.get("strip_accents", normalizer.get("strip_accents")),
        "split_chinese": config.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True)),
    }
    if rules["lowercase"] != normalizer.get("lowercase", True):
        logger.warning("%s: do_lower_case of the %s beside it is used, not its own lowercase", file, CONFIG)
    return WordPieceTokenizer(pieces, **rules)


def _lowercase_by_content(file: pathlib.Path, pieces: list[str]) -> bool:
    lowercase = not any(piece != piece.lower() for piece in pieces)
    found, then = ("no capitals", "lower-cased") if lowercase else ("capitals", "kept as it is")
    logger.warning("%s: no do_lower_case in a %s beside it; it holds %s, so text is %s", file, CONFIG, found, then)
    return lowercase


def _bracketed(piece: str) -> bool:
    """[unused7] and the <S> of bert-base-chinese (a lower-cased model) say nothing about the case of the text."""
    return piece[0] + piece[-1] in ("[]", "<>") and len(piece) > 2


def _read(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BertJaxError(f"cannot be read: {error.strerror}") from error


def _read_json(file: pathlib.Path) -> dict:
    try:
        content = json.loads(_read(file))
    except ValueError as error:
        raise BertJaxError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BertJaxError(f"{file} is not a tokenizer: a JSON object is needed")
    return content
