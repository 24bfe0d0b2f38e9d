"""What every tokenizer offers; all kinds run on the `tokenizers` library, so one class holds all but the rules."""

import abc
import functools
import hashlib
import json
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from bert_jax.errors import BertJaxError
from bert_jax.files import check_local, write_whole

# Keys of a tokenizer_config.json that point at files or code of the place where it was written.
_LOCAL_SETTINGS = ("auto_map", "merges_file", "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file")

_BATCH = 256  # texts


class Encoding(NamedTuple):
    """One encoded text: `ids` int32 [L] and `offsets` int32 [L, 2], begin and end in characters of the text given."""

    ids: np.ndarray
    offsets: np.ndarray


class Tokenizer(abc.ABC):
    """Text to ids and back. Immutable; pickles to any worker process; equal `hash` means equal ids for every text.

    Attributes:
      pieces: the vocabulary in id order, V strings, without duplicates. V is the largest id plus one; an id without a
        piece of its own is a hole, named "<hole 7>" here and known to no method that takes a piece.
      special_ids: ids that are never masked and never drawn as random replacements: special pieces and holes.
      lowercase: whether capitals are lost.
      hash: sha256 of the kind, the vocabulary in order (with scores) and the normalisation rules.
      settings: facts of the tokenizer_config.json that it came with (model_max_length ...); `save` writes them again.
    """

    kind: str

    def __init__(
        self,
        pieces: Sequence[str | None],
        specials: Sequence[str],
        special_ids: Iterable[int],
        lowercase: bool,
        settings: Mapping[str, Any] | None = None,
    ):
        """`pieces` has None at holes; `specials` names padding, unknown, CLS, SEP and MASK, in this order."""
        self.pieces = tuple(f"<hole {i}>" if piece is None else piece for i, piece in enumerate(pieces))
        self.lowercase = lowercase
        self.vocab_size = len(self.pieces)
        self.settings = {key: value for key, value in (settings or {}).items() if key not in _LOCAL_SETTINGS}
        self._ids = {piece: i for i, piece in enumerate(pieces) if piece is not None}
        self._holes = tuple(i for i, piece in enumerate(pieces) if piece is None)
        missing = [piece for piece in specials if piece not in self._ids]
        if missing:
            raise BertJaxError(f"the {self.kind} vocabulary lacks {' '.join(missing)}: it must hold {' '.join(specials)}")
        if len(self._ids) + len(self._holes) < self.vocab_size:
            seen: set[str] = set()
            twice = next(piece for piece in self.pieces if piece in seen or seen.add(piece))
            raise BertJaxError(f"the {self.kind} vocabulary holds {twice!r} twice: ids would be ambiguous, remove one")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (self._ids[piece] for piece in specials)
        self.special_ids = tuple(sorted({*special_ids, *self._holes}))
        self.hash = hashlib.sha256(json.dumps([self.kind, self._identity()]).encode()).hexdigest()
        self._corpus = self._pipeline(literal_specials=True)

    @abc.abstractmethod
    def _identity(self) -> list:
        """All that decides the ids, as JSON values: the content of `hash`."""

    @abc.abstractmethod
    def _pipeline(self, *, literal_specials: bool) -> tokenizers.Tokenizer:
        """Normaliser, pre-tokeniser, model and decoder. With `literal_specials`, no text can produce a special id."""

    @abc.abstractmethod
    def word_starts(self) -> np.ndarray:
        """bool [V]: whether a piece begins a word (specials do)."""

    @abc.abstractmethod
    def save(self, directory: str | os.PathLike) -> None:
        """Writes the files that `load` and transformers' AutoTokenizer read; the directory is made if absent."""

    @functools.cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        """The pipeline that recognises special pieces in the text and can wrap segments in CLS and SEP."""
        marked = self._pipeline(literal_specials=False)
        marked.add_special_tokens([self.pieces[i] for i in self.special_ids if i not in self._holes])
        marked.post_processor = self._post_processor
        return marked

    @functools.cached_property
    def _post_processor(self) -> tokenizers.processors.PostProcessor | None:
        """What puts special tokens around one or two texts; BERT's form unless a kind knows better."""
        cls, sep = self.pieces[self.cls_id], self.pieces[self.sep_id]
        return tokenizers.processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, self.cls_id), (sep, self.sep_id)],
        )

    @functools.cached_property
    def _layouts(self) -> tuple[list["Slot"], list["Slot"]]:
        return layout(self._post_processor, pair=False), layout(self._post_processor, pair=True)

    def build(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(ids, segment ids), both int32 [L]: one text or a pair with the special tokens that transformers adds.

        BERT and ALBERT have [CLS] A [SEP] B [SEP], segments 0 and 1; RoBERTa and XLM-R <s> A </s> </s> B </s>, segments
        all 0. A tokenizer.json without a post-processor adds nothing.

        Args:
          first, second: ids [LA] and [LB] as `encode` gives them; they may be empty.
        """
        texts = [np.asarray(ids, np.int32) for ids in (first, () if second is None else second)]
        ids, segments = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]  # for a layout without any slot
        for slot in self._layouts[second is not None]:
            part = np.array([slot.id], np.int32) if slot.text is None else texts[slot.text]
            ids.append(part)
            segments.append(np.full(len(part), slot.segment, np.int32))
        return np.concatenate(ids), np.concatenate(segments)

    def encode_batch(self, texts: Sequence[str], *, special: bool = False) -> list[np.ndarray]:
        """int32 ids [L] of each text, nothing added. "[MASK]" and its like in a corpus are text, never special ids; with
        `special` they get their own ids, as transformers gives them."""
        pipeline = self._marked if special else self._corpus
        try:
            encoded = pipeline.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise _not_text(texts) from error
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def encoder(self) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
        """What encodes a corpus: a function from N texts to the ids of `encode_batch` one after another, and how many each of
        them has, int64 [N]."""

        def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            encoded = self._encode_many(texts)
            lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
            return np.concatenate([np.empty(0, np.int32), *encoded]), lengths

        return encode

    def _encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_batch` for any number of texts: of many at once the library holds all results, and takes longer."""
        batches = (texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH))
        return [ids for batch in batches for ids in self.encode_batch(batch)]

    def encode_batch_with_offsets(self, texts: Sequence[str], *, special: bool = False) -> list[Encoding]:
        """The ids of `encode_batch`, and where each piece stands in its text; takes longer."""
        pipeline = self._marked if special else self._corpus
        try:
            encoded = pipeline.encode_batch(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise _not_text(texts) from error
        return [
            Encoding(np.array(one.ids, dtype=np.int32), np.array(one.offsets, dtype=np.int32).reshape(-1, 2)) for one in encoded
        ]

    def encode(self, text: str, *, special: bool = False) -> Encoding:
        """Ids with offsets, nothing added. With `special`, "[MASK]" and the other special pieces in the text get
        their own ids (fill-mask); without, they are text like any other."""
        pipeline = self._marked if special else self._corpus
        try:
            encoded = pipeline.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise _not_text([text]) from error
        offsets = np.array(encoded.offsets, dtype=np.int32).reshape(-1, 2)
        return Encoding(np.array(encoded.ids, dtype=np.int32), offsets)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, words rejoined; special pieces stay visible ("[CLS] a man [SEP]")."""
        ids = [int(i) for i in ids]
        for i in ids:
            self._check_id(i)
        return self._marked.decode(ids, skip_special_tokens=False)

    def piece(self, id: int) -> str:
        """The piece of one id; BertJaxError when it lies outside the vocabulary."""
        self._check_id(id)
        return self.pieces[id]

    def piece_id(self, piece: str) -> int:
        """The id of a piece exactly as it stands in the vocabulary ("##ing", "▁the"); BertJaxError when absent."""
        if piece not in self._ids:
            raise BertJaxError(f"{piece!r} is not one of the {self.vocab_size} pieces of this {self.kind} vocabulary")
        return self._ids[piece]

    def _check_id(self, id: int) -> None:
        if not 0 <= id < self.vocab_size:
            raise BertJaxError(f"token id {id} lies outside the vocabulary: ids run from 0 to {self.vocab_size - 1}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, lowercase={self.lowercase}, hash={self.hash[:12]})"


_JOINED = frozenset('!"#$%&()*+,-./:;?@[\\]^_`{|}~')  # what ALBERT leaves inside a piece of several characters
_UNSPACED = (  # names of characters in scripts without blanks between words
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR",
    "TIBETAN",
)


def begins_word(piece: str) -> bool:
    """Whether a piece of a vocabulary that marks blanks with ▁ begins a word: with the mark, as a punctuation mark alone, or
    with any character but letters and most ASCII punctuation in it (digits, ideographs, apostrophes).

    `_is_start_piece_sp` of google-research/albert, whose letters are a to z; here they are those of every script that puts
    blanks between words, so that "für" stays one word.
    """
    return piece.startswith("▁") or piece in _JOINED or not all(char in _JOINED or _is_spaced_letter(char) for char in piece)


def _is_spaced_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LM" and not unicodedata.name(char, "").startswith(_UNSPACED)


class Slot(NamedTuple):
    """One place in the layout of a sequence: the special token `id`, or (`text` 0 or 1) the first or second text."""

    text: int | None
    id: int
    token: str
    segment: int


def layout(post_processor: tokenizers.processors.PostProcessor | None, *, pair: bool) -> list[Slot]:
    """Where a post-processor puts one text or a pair, asked of the library itself with texts of one token each."""
    probe = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x"))
    if post_processor is not None:
        probe.post_processor = post_processor
    shown = probe.encode("x", "x") if pair else probe.encode("x")
    fields = zip(shown.sequence_ids, shown.ids, shown.tokens, shown.type_ids, strict=True)
    return [Slot(*field) for field in fields]


def _not_text(texts: Sequence[str]) -> BertJaxError:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            return BertJaxError(f"text {i} is a {type(text).__name__}, not a string: pass decoded text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return BertJaxError(f"text {i} holds a lone surrogate at character {error.start}: decode it as UTF-8")
    return BertJaxError("texts must be a sequence of strings")


def write_files(directory: str | os.PathLike, files: dict[str, bytes]) -> None:
    """Writes each file whole or not at all. Raises BertJaxError where that cannot be."""
    check_local(directory)
    folder = pathlib.Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise BertJaxError(f"cannot save the tokenizer to {folder}: {error.strerror}") from error


def to_json(value: object) -> bytes:
    """Readable JSON as UTF-8 bytes, keys in the order given."""
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
