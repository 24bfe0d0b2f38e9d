"""WordPiece as BERT uses it (Devlin et al. 2019; google-research/bert `tokenization.py`), with transformers' ids."""

import functools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from bert_jax.errors import BertJaxError
from bert_jax.progress import Progress
from bert_jax.tokenizers.base import Tokenizer, to_json, write_files
from bert_jax.tokenizers.sampling import training_lines, warn_of_stripped
from bert_jax.tokenizers.words import BERT_WORDS, BERT_WORDS_AND_IDEOGRAPHS, WordMemory

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"
# Characters rarer than this share of the text become [UNK]: SentencePiece's and ALBERT's character coverage.
COVERAGE = 0.99995


class WordPieceTokenizer(Tokenizer):
    """Words split at whitespace and punctuation, each then cut greedily into the longest pieces of the vocabulary."""

    kind = "wordpiece"

    def __init__(
        self,
        pieces: Sequence[str | None],
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        split_chinese: bool = True,
        settings: Mapping[str, Any] | None = None,
    ):
        """`strip_accents` None follows `lowercase`, as in the original; `split_chinese` makes each ideograph a word.

        `pieces` has None at ids without a piece; `settings` are facts for the tokenizer_config.json that is saved.
        """
        self.strip_accents = lowercase if strip_accents is None else strip_accents
        self.split_chinese = split_chinese
        special_ids = [i for i, piece in enumerate(pieces) if piece in SPECIALS]
        super().__init__(pieces, SPECIALS, special_ids, lowercase, settings)

    def _identity(self) -> list:
        return [self.pieces, self.lowercase, self.strip_accents, self.split_chinese]

    def _pipeline(self, *, literal_specials: bool) -> Pipeline:
        # Brackets are punctuation, so a literal "[MASK]" falls apart before it reaches the model: nothing more to do.
        model = models.WordPiece(
            self._ids, unk_token="[UNK]", max_input_chars_per_word=100, continuing_subword_prefix=CONTINUATION
        )
        return _word_splitter(Pipeline(model), self.lowercase, self.strip_accents, self.split_chinese)

    def encoder(self) -> WordMemory:
        return WordMemory(self._encode_many, BERT_WORDS_AND_IDEOGRAPHS if self.split_chinese else BERT_WORDS)

    def word_starts(self) -> np.ndarray:
        return np.array([not piece.startswith(CONTINUATION) for piece in self.pieces], dtype=bool)

    def save(self, directory: str | os.PathLike) -> None:
        # None, where the original says so, is the same rule: accents go where capitals go.
        follows = "strip_accents" in self.settings and self.strip_accents == self.lowercase
        config = self.settings | {
            "tokenizer_class": self.settings.get("tokenizer_class") or "BertTokenizer",
            "do_lower_case": self.lowercase,
            "strip_accents": self.settings["strip_accents"] if follows else self.strip_accents,
            "tokenize_chinese_chars": self.split_chinese,
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        }
        files = {
            "tokenizer_config.json": to_json(config),  # first: what is read without it would follow other rules
            "vocab.txt": "".join((piece or "") + "\n" for piece in self._written_pieces()).encode(),
            "tokenizer.json": self._marked.to_str(pretty=True).encode(),
        }
        write_files(directory, files)

    def _written_pieces(self) -> list[str | None]:
        holes = set(self._holes)
        return [None if i in holes else piece for i, piece in enumerate(self.pieces)]

    def __reduce__(self):
        rules = {
            "lowercase": self.lowercase,
            "strip_accents": self.strip_accents,
            "split_chinese": self.split_chinese,
            "settings": self.settings,
        }
        return functools.partial(WordPieceTokenizer, **rules), (self._written_pieces(),)


def _word_splitter(pipeline: Pipeline, lowercase: bool, strip_accents: bool, split_chinese: bool) -> Pipeline:
    pipeline.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.decoder = decoders.WordPiece(prefix=CONTINUATION)
    return pipeline


def train_wordpiece(texts: Iterable[str], vocab_size: int, *, lowercase: bool) -> WordPieceTokenizer:
    """Learns a WordPiece vocabulary: specials 0..4, then characters and merges (pairs seen once are not merged).

    The library numbers the continuation characters in the order of a randomly seeded hash map and breaks ties between
    merges by those numbers, so two runs differ. Naming the alphabet and its continuations beforehand, in order, fixes
    every number before the first merge.
    """
    lines = training_lines(texts)
    if lowercase:
        warn_of_stripped(lines)
    pipeline = _word_splitter(Pipeline(models.WordPiece(unk_token="[UNK]")), lowercase, lowercase, True)
    alphabet = _alphabet(lines, pipeline)
    if not alphabet:
        raise BertJaxError("the training corpus holds nothing but blanks and control characters: no word to learn from")
    continuations = [CONTINUATION + char for char in alphabet if _continues(char, pipeline)]
    smallest = len(SPECIALS) + len(alphabet) + len(continuations)
    if vocab_size < smallest:
        raise BertJaxError(
            f"vocab_size {vocab_size} cannot hold this text's {len(alphabet)} characters: ask for at least {smallest}"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[*SPECIALS, *continuations],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUATION,
    )
    with Progress("learning WordPiece") as progress:  # of what follows the reading, the library says nothing
        pipeline.train_from_iterator(_counted(lines, progress), trainer, length=len(lines))
    vocabulary = pipeline.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    if len(pieces) < vocab_size:
        raise BertJaxError(
            f"vocab_size {vocab_size} is more than this text can fill: ask for at most {len(pieces)}, or give more text"
        )
    return WordPieceTokenizer(pieces, lowercase=lowercase)


def _counted(lines: list[str], progress: Progress) -> Iterator[str]:
    for n, line in enumerate(lines, 1):
        if n % 1000 == 0:
            progress.update(n, f"{n:,} of {len(lines):,} lines")
        yield line


def _alphabet(lines: Iterable[str], pipeline: Pipeline) -> list[str]:
    """The normalised characters that cover COVERAGE of the text, sorted; ties fall to the lower code point."""
    raw: Counter[str] = Counter()
    for line in lines:
        raw.update(line)
    counts: Counter[str] = Counter()
    for char, count in raw.items():  # normalisation works character by character, so each kind is normalised once
        for normal in pipeline.normalizer.normalize_str(char):
            if not normal.isspace():
                counts[normal] += count
    wanted, covered, alphabet = COVERAGE * counts.total(), 0, []
    for char, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= wanted:
            break
        alphabet.append(char)
        covered += count
    return sorted(alphabet)


def _continues(char: str, pipeline: Pipeline) -> bool:
    """Whether a character can stand inside a word: not so for punctuation and ideographs."""
    spaced = pipeline.normalizer.normalize_str("a" + char)
    return len(pipeline.pre_tokenizer.pre_tokenize_str(spaced)) == 1 and not unicodedata.category(char).startswith("Z")
