"""What a tokenizer.json says: its vocabulary, the names of its special pieces, its added tokens.

The format is that of the `tokenizers` library; `settings` and `special_map` are the JSON objects of the
tokenizer_config.json and special_tokens_map.json that transformers keeps beside it.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer as Pipeline

from bert_jax.errors import BertJaxError
from bert_jax.tokenizers.base import Slot, layout

ROLES = ("pad", "unk", "cls", "sep", "mask")
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}  # of a special piece by default

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "padding")
_MODEL_TYPES = {
    "type": str,
    "unk_id": int,
    "unk_token": str,
    "continuing_subword_prefix": str,
    "end_of_word_suffix": str,
    "max_input_chars_per_word": int,
    "merges": list,
}
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_STAND_INS = {"cls": "bos", "sep": "eos"}  # older files name only these
_WELL_KNOWN = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_EXTRA = ("additional_special_tokens", "extra_special_tokens")
_LONGEST_WORD = 10_000
_LARGEST_ID = 10_000_000
_TRIAL = "a é 一 \u0378"


def parse(content: bytes) -> dict:
    """The file as JSON; BertJaxError unless it has a model of a known type, with a vocabulary that can answer to any text."""
    try:
        rules = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BertJaxError(f"is not JSON: {error}") from error
    if not isinstance(rules, dict):
        raise BertJaxError("is not a tokenizer: a JSON object is needed")
    model = rules.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list) or not model["vocab"]:
        raise BertJaxError("holds no tokenizer: it has no model with a vocabulary")
    for part in _PARTS:
        if not isinstance(rules.get(part), dict | None):
            raise BertJaxError(f"is damaged: {part} must be an object or null, not {rules[part]!r:.50}")
    for key, wanted in _MODEL_TYPES.items():
        if type(model.get(key)) not in (wanted, type(None)):
            raise BertJaxError(f"is damaged: {key} of the model must be of type {wanted.__name__}, not {model[key]!r:.50}")
    kind = model.get("type")
    if kind not in (None, *_MODELS):
        raise BertJaxError(f"holds a model of type {kind!r}: the tokenizers library knows {', '.join(_MODELS)}")
    if kind == "Unigram" and not model.get("byte_fallback"):
        if model.get("unk_id") is None or not 0 <= model["unk_id"] < len(model["vocab"]):
            raise BertJaxError("has a Unigram model without an unknown piece: unk_id must be an id of the vocabulary")
    if kind in ("WordLevel", "WordPiece") and model.get("unk_token", "[UNK]") not in model["vocab"]:
        raise BertJaxError(f"lacks its unknown piece: {model.get('unk_token', '[UNK]')!r} is not in the vocabulary")
    return rules


def vocabulary(rules: Mapping[str, Any]) -> dict[str, int]:
    """Piece to id, without added tokens. A piece that a Unigram list repeats has its last id, as the library finds it."""
    listed = rules["model"]["vocab"]
    if isinstance(listed, list):
        if not all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in listed):
            raise BertJaxError("has a damaged vocabulary: entries must be pairs of a piece and its score")
        return {piece: i for i, (piece, _) in enumerate(listed)}
    if not all(type(i) is int and 0 <= i < _LARGEST_ID for i in listed.values()):
        raise BertJaxError(f"has a damaged vocabulary: ids must be whole numbers from 0 to {_LARGEST_ID - 1}")
    return listed


def by_id(ids: Mapping[str, int]) -> list[str | None]:
    """Pieces in id order, None at holes; BertJaxError where two pieces share an id."""
    pieces: list[str | None] = [None] * (max(ids.values()) + 1)
    for piece, i in ids.items():
        if pieces[i] is not None:
            raise BertJaxError(f"ids collide: {pieces[i]!r} and {piece!r} both have id {i}, give one of them another")
        pieces[i] = piece
    return pieces


def run(rules: Mapping[str, Any]) -> Pipeline:
    """The pipeline on the library, without truncation and padding; BertJaxError if the library cannot run it."""
    try:
        pipeline = Pipeline.from_str(json.dumps({**rules, "truncation": None, "padding": None}))
        pipeline.encode(_TRIAL, _TRIAL)  # what is wrong may show only in use
        pipeline.encode(_TRIAL)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library has no class for its errors, and its panics are no Exceptions
        reason = " ".join(str(error).split())
        raise BertJaxError(f"cannot be run by the tokenizers library: {reason}") from error
    return pipeline


def opens_at_blanks(rules: Mapping[str, Any]) -> bool:
    """Whether a text is cut by GPT-2's expression and in no other way: a single blank opens a word."""
    splitter = rules.get("pre_tokenizer") or {}
    byte_level = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
    return byte_level and not rules.get("normalizer") and not rules["model"].get("dropout")


def special_names(settings: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, str]:
    """Role to piece, where the two files name one: entries are strings or objects with "content".

    special_tokens_map.json has the last word, unless tokenizer_config.json tells all with its added_tokens_decoder.
    """
    named = {**settings, **({} if "added_tokens_decoder" in settings else special_map)}
    found = {}
    for role in ROLES:
        for key in (role, _STAND_INS.get(role)):
            if key and named.get(f"{key}_token") is not None and role not in found:
                found[role] = _name(named[f"{key}_token"], f"{key}_token")
    return found


def extra_names(settings: Mapping[str, Any], special_map: Mapping[str, Any]) -> list[str]:
    """More special pieces, in order, that belong to none of the roles."""
    found = []
    for source in (settings, {} if "added_tokens_decoder" in settings else special_map):
        for key in _EXTRA:
            listed = source.get(key) or []
            if not isinstance(listed, dict | list):
                raise BertJaxError(f"{key} must be a list of pieces, not {listed!r:.50}")
            found += [_name(entry, key) for entry in (listed.values() if isinstance(listed, dict) else listed)]
    return list(dict.fromkeys(found))


def _name(entry: object, key: str) -> str:
    name = entry.get("content") if isinstance(entry, dict) else entry
    if not isinstance(name, str) or not name:
        raise BertJaxError(f"{key} names no piece: it must be a string or an object with content, not {entry!r}")
    return name


def specials(rules: Mapping[str, Any], named: Mapping[str, str], known: Collection[str]) -> list[str]:
    """The pieces for padding, unknown, CLS, SEP and MASK, in this order, all of them in `known`.

    `named` comes first; else what the file itself puts around texts, pads with and takes for unknown; else the names
    that the families use. BertJaxError says which are missing.
    """
    model = rules["model"]
    unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")
    around = [slot.token if slot.text is None else None for slot in layouts(rules)[0]]
    at = around.index(None)  # where the text stands
    used = {
        "pad": (rules.get("padding") or {}).get("pad_token"),
        "unk": unknown,
        "cls": around[0] if at else None,
        "sep": around[at + 1] if at + 1 < len(around) else None,
    }
    chosen, missing = [], []
    for role in ROLES:
        offers = [named[role]] if role in named else [used.get(role), *_WELL_KNOWN[role]]
        piece = next((offer for offer in offers if offer in known), None)
        chosen.append(piece)
        if piece is None:
            missing.append(f"{role} ({named[role] if role in named else ' or '.join(_WELL_KNOWN[role])})")
    if missing:
        raise BertJaxError(
            f"the vocabulary lacks the special pieces for {', '.join(missing)}: "
            "it must hold them, and tokenizer_config.json may name them (mask_token ...)"
        )
    return chosen


def post_processor(rules: Mapping[str, Any]):
    """What puts special tokens around a text, as an object of the library; None where the file has none."""
    form = rules.get("post_processor")
    if form is None:
        return None
    _check_template(form)
    bare = {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}
    return run({"version": "1.0", "added_tokens": [], "post_processor": form, "model": bare}).post_processor


def _check_template(form: Mapping[str, Any]) -> None:
    """The library panics, with a page of stack, at the use of a template that names what it does not define."""
    try:
        for part in (form, *(form.get("processors") or [])):
            for slot in (part.get("single") or []) + (part.get("pair") or []) if "special_tokens" in part else []:
                name = slot.get("SpecialToken", {}).get("id")
                if name is not None and name not in part["special_tokens"]:
                    raise BertJaxError(f"has a damaged post-processor: it defines no special token {name!r}")
    except (AttributeError, TypeError) as error:
        raise BertJaxError("has a damaged post-processor: its templates must be lists of objects") from error


def layouts(rules: Mapping[str, Any]) -> tuple[list[Slot], list[Slot]]:
    """How the file lays out one text and a pair."""
    processor = post_processor(rules)
    try:
        single, pair = (layout(processor, pair=pair) for pair in (False, True))
    except ValueError as error:
        raise BertJaxError("has a damaged post-processor: a special token has not as many ids as names") from error
    if [slot.text for slot in single].count(0) != 1 or {slot.text for slot in pair} < {0, 1}:
        raise BertJaxError("has a post-processor that leaves out a text or repeats it: its template needs $A, and $B for pairs")
    return single, pair


def added_tokens(rules: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict]:
    """The added tokens of the file; the added_tokens_decoder of `settings` overrides and extends them."""
    tokens: dict[str, dict] = {}
    decoder = settings.get("added_tokens_decoder") or {}
    try:
        entries = [*(rules.get("added_tokens") or []), *({"id": int(i), **decoder[i]} for i in sorted(decoder, key=int))]
        for entry in entries:
            special = bool(entry.get("special", False))
            tokens[entry["content"]] = {**FLAGS, "normalized": not special, **entry, "special": special}
            if type(entry["id"]) is not int or not isinstance(entry["content"], str) or not entry["content"]:
                raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BertJaxError("has damaged added tokens: each must be an object with an id and its content") from error
    return list(tokens.values())


def mark_special(tokens: Iterable[dict], pieces: Iterable[str], ids: Mapping[str, int]) -> list[dict]:
    """`tokens` in which all of `pieces` are special; those that were no added tokens follow at the end."""
    marked = {token["content"]: dict(token) for token in tokens}
    for piece in pieces:
        if piece in marked:
            marked[piece]["special"] = True
        else:
            following = max([*ids.values(), *(token["id"] for token in marked.values())]) + 1
            marked[piece] = {"id": ids.get(piece, following), "content": piece, "special": True, **FLAGS}
    return list(marked.values())


def hidden_names(rules: Mapping[str, Any], pieces: Iterable[str]) -> dict[str, str]:
    """For each special piece a name that no text can spell: more blanks than a word may have characters.

    An unknown piece that a model looks up by name keeps its own: unknown is what that text is.
    """
    model = rules["model"]
    blanks = " " * (min(model.get("max_input_chars_per_word") or 100, _LONGEST_WORD) + 1)
    return {piece: blanks + piece for piece in pieces if piece != model.get("unk_token")}


def rename(rules: Mapping[str, Any], names: Mapping[str, str]) -> dict:
    """`rules` with pieces renamed in the vocabulary and among the added tokens; merges that make one of them are dropped."""
    model, listed = dict(rules["model"]), rules["model"]["vocab"]
    if isinstance(listed, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in listed]
    else:
        model["vocab"] = {names.get(piece, piece): i for piece, i in listed.items()}
    if "merges" in model:
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"] or []]
        if not all(isinstance(merge, list) and [type(part) for part in merge] == [str, str] for merge in merges):
            raise BertJaxError("has damaged merges: each must be a pair of pieces")
        model["merges"] = [merge for merge in merges if not names.keys() & {*merge, "".join(merge)}]
    added = [{**token, "content": names.get(token["content"], token["content"])} for token in rules["added_tokens"]]
    return {**rules, "model": model, "added_tokens": added}
