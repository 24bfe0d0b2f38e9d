"""SentencePiece unigram with ALBERT's conventions (Kudo 2018; Lan et al. 2020; google-research/albert).

`sentencepiece` trains and stores the model; the `tokenizers` library runs it, because that is what transformers runs
and the exported ids must be its ids. Three facts decide the ids:

- Pieces that end in digit + comma ("9,") are pushed out by a penalty of 100 on their score. google-research/albert
  splits them again in `encode_pieces`; transformers' converted ALBERT files carry this penalty for it.
- `save` writes tokenizer.json beside spiece.model. From spiece.model alone, transformers 5 turns ALBERT's user-defined
  symbols ( ) " - . into added tokens: "foo-bar" becomes "▁foo - ▁bar" where ALBERT was trained on "▁foo - bar".
- Accents are stripped in both cases of `lowercase` where nothing else is said, as `preprocess_text` does. A model that is
  trained here keeps them with upper case.
"""

import functools
import io
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers

from bert_jax.errors import BertJaxError
from bert_jax.progress import Progress
from bert_jax.tokenizers.base import Tokenizer, begins_word, to_json, write_files
from bert_jax.tokenizers.sampling import training_lines, warn_of_stripped
from bert_jax.tokenizers.words import BLANKS, WordMemory

SPECIALS = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
SPACE = "▁"
ALWAYS_WHOLE = ("(", ")", '"', "-", ".", "–", "£", "€")  # user-defined symbols of the released ALBERT models
DIGIT_COMMA_PENALTY = 100.0
# Every thread sums its own share of the expected counts, so the thread count shapes the result: never the machine's.
TRAINING_THREADS = 16

_NORMAL, _USER_DEFINED = 1, 4  # piece types of sentencepiece_model.proto; the others never come from text
_UNIGRAM = 1  # model type


class SentencePieceTokenizer(Tokenizer):
    """Words split at whitespace, each marked with ▁ and cut into its most probable pieces."""

    kind = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        *,
        lowercase: bool = True,
        strip_accents: bool = True,
        settings: Mapping[str, Any] | None = None,
    ):
        """`model` is the content of a spiece.model; BertJaxError if it is not a unigram model with the specials.

        `settings` are facts for the tokenizer_config.json that is saved.
        """
        proto = parse_model(model)
        self.strip_accents = strip_accents
        self.model = model
        self._scores = [piece.score for piece in proto.pieces]
        self._character_map = proto.normalizer_spec.precompiled_charsmap
        special_ids = [i for i, piece in enumerate(proto.pieces) if piece.type not in (_NORMAL, _USER_DEFINED)]
        super().__init__([piece.piece for piece in proto.pieces], SPECIALS, special_ids, lowercase, settings)

    def _identity(self) -> list:
        rules = [self.lowercase, self.strip_accents, self._character_map.hex()]
        return [self.pieces, [score.hex() for score in self._scores], *rules]

    def _pipeline(self, *, literal_specials: bool) -> Pipeline:
        vocabulary = []
        for i, (piece, score) in enumerate(zip(self.pieces, self._scores, strict=True)):
            if literal_specials and i in self.special_ids:
                # The library would match "<pad>" in the text with the piece of that name; a word never holds a blank.
                piece = " " + piece
            elif len(piece) >= 2 and piece[-1] == "," and piece[-2].isdigit():
                score -= DIGIT_COMMA_PENALTY
            vocabulary.append((piece, score))
        pipeline = Pipeline(models.Unigram(vocabulary, unk_id=self.unk_id, byte_fallback=False))
        rules = _preprocessing(self.lowercase, self.strip_accents)
        if self._character_map:
            rules.append(normalizers.Precompiled(self._character_map))
        pipeline.normalizer = normalizers.Sequence(rules)
        marker = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
        pipeline.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marker])
        pipeline.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
        return pipeline

    def encoder(self) -> WordMemory:
        return WordMemory(self._encode_many, BLANKS)

    def word_starts(self) -> np.ndarray:
        starts = np.array([begins_word(piece) for piece in self.pieces], dtype=bool)
        starts[list(self.special_ids)] = True
        return starts

    def save(self, directory: str | os.PathLike) -> None:
        config = self.settings | {
            "tokenizer_class": "AlbertTokenizer",
            "do_lower_case": self.lowercase,
            "keep_accents": not self.strip_accents,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "bos_token": "[CLS]",
            "eos_token": "[SEP]",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        }
        files = {
            "tokenizer_config.json": to_json(config),  # first: what is read without it would follow other rules
            "spiece.model": self.model,
            "tokenizer.json": self._marked.to_str(pretty=True).encode(),
        }
        write_files(directory, files)

    def __reduce__(self):
        rules = {"lowercase": self.lowercase, "strip_accents": self.strip_accents, "settings": self.settings}
        return functools.partial(SentencePieceTokenizer, **rules), (self.model,)


def parse_model(model: bytes) -> Message:
    """A SentencePiece model file, a ``ModelProto``; BertJaxError if it is none, or not of the unigram type."""
    from sentencepiece import sentencepiece_model_pb2  # here: most tokenizers are of another kind

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise BertJaxError("not a SentencePiece model: the bytes do not parse, give the original file") from error
    if not proto.pieces:
        raise BertJaxError("not a SentencePiece model: it holds no pieces, give the original file")
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise BertJaxError("this SentencePiece model is not of the unigram type: BERT's family has no other")
    return proto


def _preprocessing(lowercase: bool, strip_accents: bool) -> list[normalizers.Normalizer]:
    """ALBERT's `preprocess_text`; blanks are collapsed later, by splitting at them."""
    rules = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if strip_accents:
        rules += [normalizers.NFKD(), normalizers.StripAccents()]
    if lowercase:
        rules.append(normalizers.Lowercase())
    return rules


def train_sentencepiece(texts: Iterable[str], vocab_size: int, *, lowercase: bool) -> SentencePieceTokenizer:
    """Learns a unigram model: <pad> <unk> [CLS] [SEP] [MASK] are 0..4, ALBERT's eight whole symbols follow. Accents go with
    upper case, and stay with it, as in WordPiece."""
    import sentencepiece

    normalize = normalizers.Sequence(_preprocessing(lowercase, strip_accents=lowercase)).normalize_str
    # sentencepiece leaves out, without a word, lines that hold NUL or its own ▁ or that are longer than it was told.
    unwanted = str.maketrans({"\0": " ", SPACE: " "})
    texts = training_lines(texts)
    if lowercase:
        warn_of_stripped(texts, ("Mn", "Mc"))
    lines = [normalize(line.translate(unwanted)) for line in texts]
    longest = max(len(line.encode()) for line in lines)
    with Progress("learning SentencePiece"):
        output = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=output,
                model_type="unigram",
                vocab_size=vocab_size,
                character_coverage=0.99995,
                normalization_rule_name="nmt_nfkc",
                pad_id=0,
                unk_id=1,
                bos_id=-1,
                eos_id=-1,
                pad_piece="<pad>",
                unk_piece="<unk>",
                control_symbols=["[CLS]", "[SEP]", "[MASK]"],
                user_defined_symbols=list(ALWAYS_WHOLE),
                input_sentence_size=0,
                shuffle_input_sentence=False,
                max_sentence_length=longest + 1,
                num_threads=TRAINING_THREADS,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise _training_error(str(error), vocab_size) from error
    return SentencePieceTokenizer(output.getvalue(), lowercase=lowercase, strip_accents=lowercase)


def _training_error(message: str, vocab_size: int) -> BertJaxError:
    """sentencepiece's own message, reduced to one line that says which size would do."""
    if limit := re.search(r"value <= (\d+)", message):
        return BertJaxError(
            f"vocab_size {vocab_size} is more than this text can fill: ask for at most {limit[1]}, or give more text"
        )
    if needed := re.search(r"required_chars[^\d]*\d+ vs (\d+)", message):
        return BertJaxError(f"vocab_size {vocab_size} cannot hold this text's characters: ask for over {needed[1]}")
    return BertJaxError(f"sentencepiece cannot learn {vocab_size} pieces from this text: {' '.join(message.split())}")
