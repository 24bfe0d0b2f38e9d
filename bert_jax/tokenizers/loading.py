"""From files to a tokenizer: a directory as `save` or transformers writes it, or one vocabulary file."""

import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bert_jax.errors import BertJaxError
from bert_jax.files import read_json
from bert_jax.tokenizers import loose, tokenizer_json, unigram
from bert_jax.tokenizers.base import Tokenizer, to_json
from bert_jax.tokenizers.pipeline import PipelineTokenizer
from bert_jax.tokenizers.unigram import SentencePieceTokenizer
from bert_jax.tokenizers.wordpiece import CONTINUATION, SPECIALS, WordPieceTokenizer

logger = logging.getLogger("bert_jax")

CONFIG = "tokenizer_config.json"
_FAIRSEQ_MODEL = "sentencepiece.bpe.model"
_VERBATIM = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that run a tokenizer.json as it is
_RULES = {"do_lower_case", "strip_accents", "tokenize_chinese_chars"}
_FAIRSEQ_IDS = (*_VERBATIM, "XLMRobertaTokenizer", "XLMRobertaTokenizerFast", "xlm-roberta", "bert")
# Classes of transformers whose vocab.txt needs another splitter of words than BERT's.
_OTHER_WORDS = ("BertJapaneseTokenizer", "RoFormerTokenizer", "BertweetTokenizer", "PhobertTokenizer")
# The same of vocab.json and merges.txt, and what ends the words of these, of which byte-level BPE knows nothing.
_OTHER_MERGES, _WORD_END = ("Herbert", "XLMTokenizer", "Flaubert", "CLIP", "OpenAIGPT"), "</w>"


class Beside(NamedTuple):
    """The JSON objects that stand beside a vocabulary: empty where there is no such file."""

    settings: dict[str, Any]
    special_map: dict[str, Any]
    added: dict[str, int]  # added_tokens.json: piece -> id

    def named(self) -> dict[str, str]:
        """Role to special piece."""
        return tokenizer_json.special_names(self.settings, self.special_map)

    def flag(self, key: str, default: bool | None = None) -> bool | None:
        """A setting that is true, false, or absent (null is too)."""
        value = self.settings.get(key)
        if type(value) not in (bool, type(None)):
            raise BertJaxError(f"{key} of the {CONFIG} beside it must be true, false or null, not {value!r}")
        return default if value is None else value

    def extends(self, known: Mapping[str, Any]) -> bool:
        """Whether these files name pieces that the vocabulary or BERT's own five do not cover."""
        tokens = tokenizer_json.added_tokens({}, self.settings)
        return (
            any(piece not in known for piece in self.added)
            or bool(tokenizer_json.extra_names(self.settings, self.special_map))
            or any(_unusual(token) for token in tokens)
        )


def load(path: str | os.PathLike) -> Tokenizer:
    """Reads a directory, or its folder ``tokenizer`` (work directories, token stores and models in bert_jax's own form have
    theirs there), or one file whose companions lie beside it; the first of these that is there:

    - spiece.model: ALBERT's SentencePiece, unless a tokenizer.json beside it adds tokens, or it is XLNet's.
    - tokenizer.json: WordPieceTokenizer if it is plain BERT, else PipelineTokenizer, which runs any.
    - sentencepiece.bpe.model: XLM-R's SentencePiece; vocab.json with merges.txt: RoBERTa's byte-level BPE.
    - vocab.txt: WordPiece. Blank and repeated lines leave holes among the ids, as in transformers; one warning line.
    - any other *.model, if there is just one: ALBERT's SentencePiece.

    Rules (lower case, accents, names of special pieces) come from tokenizer_config.json, special_tokens_map.json and
    added_tokens.json beside the file, else from tokenizer.json itself; a bare vocabulary counts as lower-cased exactly if
    none of its pieces holds a capital, and one warning line says so.

    Raises BertJaxError for a missing path, a file that is no tokenizer or damaged, a vocabulary without the five special
    pieces, and ids that collide.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise BertJaxError(f"no tokenizer at {path}: give a directory, vocab.txt, tokenizer.json or a .model file")
    if path.is_dir() and not is_in(path) and is_in(path / "tokenizer"):
        path = path / "tokenizer"
    file = _vocabulary_file(path) if path.is_dir() else path
    try:
        names = (CONFIG, "special_tokens_map.json", "added_tokens.json")
        beside = Beside(*(read_json(file.parent / name) if (file.parent / name).is_file() else {} for name in names))
        beside = beside._replace(settings=_with_class(beside.settings, file.parent / "config.json"))
        if not all(type(i) is int for i in beside.added.values()):
            raise BertJaxError(f"{file.parent / names[2]} is damaged: it must map pieces to ids")
        if "auto_map" in beside.settings:
            logger.warning("%s: the code that auto_map names is not run", file.parent / CONFIG)
        return _reader(file)(file, beside)
    except BertJaxError as error:
        raise BertJaxError(error.args[0] if str(file.parent) in error.args[0] else f"{file}: {error.args[0]}") from error


def _with_class(settings: dict[str, Any], config: pathlib.Path) -> dict[str, Any]:
    """``settings`` with the class of the tokenizer, which in old repositories the model's config.json names, as transformers
    looks there."""
    if settings.get("tokenizer_class") or not config.is_file():
        return settings
    named = read_json(config).get("tokenizer_class")
    return settings | {"tokenizer_class": named} if isinstance(named, str) else settings


def is_in(directory: str | os.PathLike) -> bool:
    """Whether a directory holds files that `load` would read."""
    try:
        return bool(_vocabulary_file(pathlib.Path(directory)))
    except BertJaxError:
        return False


def _vocabulary_file(directory: pathlib.Path) -> pathlib.Path:
    if (directory / "spiece.model").is_file() and not _is_needed(directory / "tokenizer.json", directory / "spiece.model"):
        return directory / "spiece.model"
    for name in ("tokenizer.json", _FAIRSEQ_MODEL, "merges.txt", "vocab.txt"):
        if (directory / name).is_file():
            return directory / ("vocab.json" if name == "merges.txt" else name)
    found = sorted(directory.glob("*.model"))
    if len(found) == 1:
        return found[0]
    raise BertJaxError(
        f"{directory} holds no tokenizer: it needs tokenizer.json, spiece.model, {_FAIRSEQ_MODEL}, vocab.txt, "
        "or vocab.json and merges.txt"
    )


def _is_needed(file: pathlib.Path, model: pathlib.Path) -> bool:
    """Whether a tokenizer.json has tokens that the spiece.model beside it cannot know, or that is none of ALBERT's: XLNet's."""
    if not file.is_file():
        return False
    try:
        rules = tokenizer_json.parse(_read(file))
        known = tokenizer_json.vocabulary(rules)
        if any(token["content"] not in known for token in tokenizer_json.added_tokens(rules, {})):
            return True
    except BertJaxError as error:
        raise BertJaxError(f"{file}: {error.args[0]}") from error
    try:
        return not {*unigram.SPECIALS} <= {piece.piece for piece in unigram.parse_model(_read(model)).pieces}
    except BertJaxError:
        return False  # who loads it says what is wrong with it


def _reader(file: pathlib.Path) -> Callable[[pathlib.Path, Beside], Tokenizer]:
    if file.suffix == ".model":
        return _load_xlm_roberta if file.name == _FAIRSEQ_MODEL else _load_sentencepiece
    if file.suffix == ".json":
        return _load_roberta if file.name == "vocab.json" else _load_tokenizer_json
    return _load_vocab


def _load_sentencepiece(file: pathlib.Path, beside: Beside) -> SentencePieceTokenizer:
    model = _read(file)
    if beside.added:
        logger.warning("%s: added_tokens.json beside it is not read, ALBERT's tokens are those of the model", file)
    lowercase = beside.flag("do_lower_case")
    rules = {"strip_accents": not beside.flag("keep_accents", False), "settings": beside.settings}
    tokenizer = SentencePieceTokenizer(model, lowercase=lowercase is not False, **rules)
    normal = [piece for i, piece in enumerate(tokenizer.pieces) if i not in tokenizer.special_ids]
    if lowercase is None and not _lowercase_by_content(file, normal):
        return SentencePieceTokenizer(model, lowercase=False, **rules)
    return tokenizer


def _load_xlm_roberta(file: pathlib.Path, beside: Beside) -> PipelineTokenizer:
    config = file.parent / "config.json"
    kinds = beside.settings.get("tokenizer_class"), read_json(config).get("model_type") if config.is_file() else None
    for kind in kinds:  # CamemBERT and mBART have files of this name, and other ids
        if kind and kind not in _FAIRSEQ_IDS:
            _refuse(kind, "the ids of XLM-R")
    content = loose.xlm_roberta(_read(file), loose.FAIRSEQ | beside.named())
    return _pipeline(content, beside)


def _load_roberta(file: pathlib.Path, beside: Beside) -> PipelineTokenizer:
    merges = file.parent / "merges.txt"
    if not (file.is_file() and merges.is_file()):
        raise BertJaxError("vocab.json and merges.txt are read together: one of them is not there")
    vocabulary = tokenizer_json.vocabulary({"model": {"vocab": read_json(file)}})
    kind = str(beside.settings.get("tokenizer_class"))
    if kind.startswith(_OTHER_MERGES) or sum(piece.endswith(_WORD_END) for piece in vocabulary) > len(vocabulary) // 100:
        _refuse(kind if kind.startswith(_OTHER_MERGES) else f"tokenizer whose words end in {_WORD_END}", "byte-level BPE")
    names = loose.FAIRSEQ | beside.named()
    _need(names, vocabulary)
    rules = {"prefix": beside.flag("add_prefix_space", False), "trim": beside.flag("trim_offsets", True)}
    content = loose.roberta(vocabulary, _text(merges), names, **rules)
    return _pipeline(content, beside)


def _load_vocab(file: pathlib.Path, beside: Beside) -> Tokenizer:
    if (kind := beside.settings.get("tokenizer_class")) in _OTHER_WORDS:
        _refuse(kind, "BERT's words")
    if (words := beside.settings.get("word_tokenizer_type")) not in (None, "basic"):
        _refuse(f"tokenizer of words by {words}", "BERT's words")
    lines = [line.rstrip(" \t\r") for line in _text(file).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    ids = {piece: i for i, piece in enumerate(lines) if piece}  # a repeated piece has its last id
    if not ids or any("\0" in piece for piece in lines):
        what = "holds a NUL byte" if ids else "is empty"
        raise BertJaxError(f"not a vocabulary: it {what}, it must hold one piece a line")
    if holes := len(lines) - len(ids):
        logger.warning("%s: %d blank or repeated lines, whose ids stay without a piece", file, holes)
    lowercase = beside.flag("do_lower_case")
    if lowercase is None:
        lowercase = _lowercase_by_content(file, [piece for piece in ids if not _bracketed(piece)])
    rules = {
        "lowercase": lowercase,
        "strip_accents": beside.flag("strip_accents"),
        "split_chinese": beside.flag("tokenize_chinese_chars", True),
    }
    names = loose.BERT | beside.named()
    if names == loose.BERT and not beside.extends(ids):
        return WordPieceTokenizer(tokenizer_json.by_id(ids), **rules, settings=beside.settings)
    _need(names, ids)
    return _pipeline(loose.bert(ids, names, **rules), beside)


def _load_tokenizer_json(file: pathlib.Path, beside: Beside) -> Tokenizer:
    content = _read(file)
    rules = tokenizer_json.parse(content)
    own, plain = rules.get("normalizer") or {}, _plain_bert(rules, beside)
    if beside.settings.get("tokenizer_class") in _VERBATIM:
        beside = beside._replace(settings={key: beside.settings[key] for key in beside.settings.keys() - _RULES})
    elif own.get("type") == "BertNormalizer":  # other classes override the rules of the file
        changed = own | dict(zip(_OWN_RULES, _rules(own, beside), strict=True))
        if _rules(changed, _ALONE) != _rules(own, _ALONE):
            logger.warning("%s: %s of the %s beside it are used, not its own rules", file, ", ".join(sorted(_RULES)), CONFIG)
            rules["normalizer"] = own = changed
            content = to_json(rules)
    if not plain:
        return PipelineTokenizer(content, settings=beside.settings, special_map=beside.special_map)
    return WordPieceTokenizer(
        tokenizer_json.by_id(tokenizer_json.vocabulary(rules)),
        lowercase=own.get("lowercase", True),
        strip_accents=own.get("strip_accents"),
        split_chinese=own.get("handle_chinese_chars", True),
        settings=beside.settings,
    )


_BERT_DEFAULTS = re.compile("(Bert|DistilBert|Electra|MobileBert|ConvBert|MPNet|LayoutLM|Funnel)Tokenizer(Fast)?")
_ALONE = Beside({}, {}, {})
_OWN_RULES = ("lowercase", "handle_chinese_chars", "strip_accents")


def _rules(own: dict, beside: Beside) -> tuple[bool, bool, bool]:
    """What a BertNormalizer does, as tokenizer_config.json states it. BERT's class, or one that is made from it, has defaults
    for what is not stated: true, and for accents null, which lets them go where capitals go."""
    default = {} if _BERT_DEFAULTS.fullmatch(str(beside.settings.get("tokenizer_class"))) else own
    lowercase = beside.flag("do_lower_case", default.get("lowercase", True))
    chinese = beside.flag("tokenize_chinese_chars", default.get("handle_chinese_chars", True))
    accents = beside.flag("strip_accents", None if "strip_accents" in beside.settings else default.get("strip_accents"))
    return lowercase, chinese, lowercase if accents is None else accents


def _plain_bert(rules: dict, beside: Beside) -> bool:
    """Whether a tokenizer.json says nothing but what WordPieceTokenizer does anyway."""
    model, normalizer = rules["model"], rules.get("normalizer") or {}
    # Files of older libraries leave the type out; a WordPiece model is then known by its prefix.
    kind = model.get("type") or ("WordPiece" if "continuing_subword_prefix" in model and "merges" not in model else None)
    expected = [
        (kind, "WordPiece"),
        (normalizer.get("type"), "BertNormalizer"),
        (normalizer.get("clean_text", True), True),
        ([type(normalizer.get(key, True)) for key in ("lowercase", "handle_chinese_chars")], [bool, bool]),
        (type(normalizer.get("strip_accents")) in (bool, type(None)), True),
        ((rules.get("pre_tokenizer") or {}).get("type"), "BertPreTokenizer"),
        (model.get("continuing_subword_prefix"), CONTINUATION),
        (model.get("unk_token"), SPECIALS[1]),
        (model.get("max_input_chars_per_word", 100), 100),
        (loose.BERT | beside.named(), loose.BERT),
    ]
    if any(found != wanted for found, wanted in expected):
        return False
    vocabulary = tokenizer_json.vocabulary(rules)
    if not vocabulary.keys() >= set(SPECIALS) or any(_unusual(token) for token in tokenizer_json.added_tokens(rules, {})):
        return False
    around = rules.get("post_processor")
    wanted = loose.bert(vocabulary, loose.BERT, lowercase=True, strip_accents=None, split_chinese=True)["post_processor"]
    forms = [tokenizer_json.layouts({"post_processor": form}) for form in (around, wanted)]
    bare = around is None and beside.settings.get("tokenizer_class") not in _VERBATIM  # these add nothing then
    return (bare or forms[0] == forms[1]) and not beside.extends(vocabulary)


def _unusual(token: Mapping[str, Any]) -> bool:
    """Whether an added token is more than one of BERT's five, found in the text exactly as it is written."""
    return token["content"] not in SPECIALS or any(token[flag] for flag in tokenizer_json.FLAGS)


def _pipeline(content: dict, beside: Beside) -> PipelineTokenizer:
    content = loose.with_added(content, beside.added)
    return PipelineTokenizer(to_json(content), settings=beside.settings, special_map=beside.special_map)


def _refuse(name: object, what: str) -> None:
    raise BertJaxError(f"belongs to a {name}, which has rules of its own, not {what}: give its tokenizer.json")


def _need(names: Mapping[str, str], vocabulary: Mapping[str, int]) -> None:
    if missing := [piece for piece in names.values() if piece not in vocabulary]:
        raise BertJaxError(f"the vocabulary lacks {' '.join(missing)}: it must hold {' '.join(names.values())}")


def _lowercase_by_content(file: pathlib.Path, pieces: list[str]) -> bool:
    lowercase = not any(piece != piece.lower() for piece in pieces)
    found, then = ("no capitals", "lower-cased") if lowercase else ("capitals", "kept as it is")
    logger.warning("%s: no do_lower_case in a %s beside it; it holds %s, so text is %s", file, CONFIG, found, then)
    return lowercase


def _bracketed(piece: str) -> bool:
    """[unused7] and the <S> of bert-base-chinese (a lower-cased model) say nothing about the case of the text."""
    return piece[0] + piece[-1] in ("[]", "<>") and len(piece) > 2


def _text(file: pathlib.Path) -> str:
    try:
        return _read(file).decode()
    except UnicodeDecodeError as error:
        raise BertJaxError(f"not a vocabulary: {file.name} is not UTF-8 text with one entry a line") from error


def _read(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BertJaxError(f"cannot be read: {error.strerror}") from error
