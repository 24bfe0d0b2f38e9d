"""Any tokenizer.json, run verbatim on the `tokenizers` library: Unigram, byte-level BPE, WordPiece with other rules.

The file decides everything but two things. Truncation and padding that happen to stand in it are not applied: they were
somebody's batch. And in `encode_batch` special pieces bear names that no text can spell; else a Unigram model would find
"<s>" in a corpus by itself, at the best of all scores.

transformers 5 does not run the file verbatim where tokenizer_class is one of its own (RobertaTokenizer,
XLMRobertaTokenizer ...): it takes the vocabulary and builds the rest of that class anew. For files as these families were
published the ids are the same, but for blanks: XLMRobertaTokenizer drops them at the end of a text, where a file whose
pre-tokeniser is Metaspace alone makes a piece ▁ of them.
"""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Pipeline
from tokenizers.processors import PostProcessor

from bert_jax.errors import BertJaxError
from bert_jax.tokenizers import tokenizer_json
from bert_jax.tokenizers.base import Tokenizer, begins_word, to_json, write_files
from bert_jax.tokenizers.words import BEFORE_BLANKS, WordMemory

logger = logging.getLogger("bert_jax")

# What opens a word: Metaspace's mark, and a blank, newline or tab as byte-level models write them.
_OPENINGS = ("▁", "Ġ", "Ċ", "ĉ")
_DECIDING = ("normalizer", "pre_tokenizer", "post_processor", "model")


class PipelineTokenizer(Tokenizer):
    """A tokenizer.json, and the special pieces that the files beside it name."""

    kind = "pipeline"

    def __init__(
        self,
        content: bytes,
        *,
        settings: Mapping[str, Any] | None = None,
        special_map: Mapping[str, Any] | None = None,
    ):
        """`content` is the tokenizer.json, `settings` and `special_map` the JSON objects of the tokenizer_config.json and
        special_tokens_map.json beside it.

        Special pieces are those named there (bos and eos stand in for cls and sep), else those that the file itself
        uses, else those of well-known names.

        Raises BertJaxError for a file that the library cannot run, ids that collide, and special pieces that the
        vocabulary lacks.
        """
        self.content, self.special_map = content, dict(special_map or {})
        settings = settings or {}
        rules = tokenizer_json.parse(content)
        ids = dict(tokenizer_json.vocabulary(rules))
        added = tokenizer_json.added_tokens(rules, settings)
        self._named = tokenizer_json.special_names(settings, self.special_map)
        self._specials = tokenizer_json.specials(rules, self._named, ids.keys() | {token["content"] for token in added})
        extra = tokenizer_json.extra_names(settings, self.special_map)
        self._added = tokenizer_json.mark_special(added, [*self._specials, *extra], ids)
        self._prefix = rules["model"].get("continuing_subword_prefix") or ""
        self._suffix = rules["model"].get("end_of_word_suffix") or ""

        rules["added_tokens"] = self._added
        special = [token["content"] for token in self._added if token["special"]]
        self._opens_at_blanks = len(special) == len(self._added) and tokenizer_json.opens_at_blanks(rules)
        hidden = tokenizer_json.hidden_names(rules, special)
        self._running = tokenizer_json.run(tokenizer_json.rename(rules, hidden))
        self._running.encode_special_tokens = True
        for token in self._added:
            piece = token["content"]
            ids[piece] = self._running.token_to_id(hidden.get(piece, piece))
            if ids[piece] != token["id"]:
                logger.warning(
                    "the added token %r has id %d in its file, but the library and transformers number added tokens "
                    "one after the other and give it %d", piece, token["id"], ids[piece],
                )  # fmt: skip
        deciding = {key: rules.get(key) for key in _DECIDING} | {"added_tokens": self._added}
        self._digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
        normalizer = self._running.normalizer
        lowercase = normalizer is not None and normalizer.normalize_str("A") == "a"
        pieces = tokenizer_json.by_id(ids)
        super().__init__(pieces, self._specials, [ids[piece] for piece in special], lowercase, settings)

    def _identity(self) -> list:
        return [self._digest, self._specials]

    def _pipeline(self, *, literal_specials: bool) -> Pipeline:
        if literal_specials:
            return self._running
        return tokenizer_json.run(tokenizer_json.parse(self.content) | {"added_tokens": self._added})

    @functools.cached_property
    def _marked(self) -> Pipeline:
        return self._pipeline(literal_specials=False)

    @functools.cached_property
    def _post_processor(self) -> PostProcessor | None:
        return self._running.post_processor

    def encoder(self) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
        return WordMemory(self._encode_many, BEFORE_BLANKS) if self._opens_at_blanks else super().encoder()

    def word_starts(self) -> np.ndarray:
        if self._suffix:
            raise BertJaxError(f"its pieces mark where words end ({self._suffix}), not where they begin: whole words unknown")
        if self._prefix:
            starts = np.array([not piece.startswith(self._prefix) for piece in self.pieces], dtype=bool)
        else:
            starts = np.array([piece.startswith(_OPENINGS) for piece in self.pieces], dtype=bool)
            if not starts.any():  # nothing marks words: each piece is one
                starts[:] = True
            elif any(piece.startswith("▁") for piece in self.pieces):
                starts |= np.array([begins_word(piece) for piece in self.pieces], dtype=bool)
        starts[list(self.special_ids)] = True
        starts[[self._ids[token["content"]] for token in self._added]] = True
        return starts

    def save(self, directory: str | os.PathLike) -> None:
        config = dict(self.settings)
        config["tokenizer_class"] = config.get("tokenizer_class") or "PreTrainedTokenizerFast"
        for key, value in self._stated().items():
            config.setdefault(key, value)
        for role, piece in zip(tokenizer_json.ROLES, self._specials, strict=True):
            if role not in self._named:
                config[f"{role}_token"] = piece
        files = {"tokenizer_config.json": to_json(config)}  # first: what is read without it would follow other rules
        if self.special_map:
            files["special_tokens_map.json"] = to_json(self.special_map)
        write_files(directory, files | {"tokenizer.json": self.content})

    def _stated(self) -> dict[str, bool]:
        """Rules of its file for which a class that is named has other defaults, which would come before them."""
        own = json.loads(self.content).get("normalizer") or {}
        if own.get("type") != "BertNormalizer" or not self.settings.get("tokenizer_class"):
            return {}
        rules = {"do_lower_case": own.get("lowercase", True), "tokenize_chinese_chars": own.get("handle_chinese_chars", True)}
        found = {key: value for key, value in rules.items() if not value}
        return found | ({"strip_accents": own["strip_accents"]} if own.get("strip_accents") is not None else {})

    def __reduce__(self):
        beside = {"settings": self.settings, "special_map": self.special_map}
        return functools.partial(PipelineTokenizer, **beside), (self.content,)
