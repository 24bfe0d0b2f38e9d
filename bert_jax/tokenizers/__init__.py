"""Every tokenizer of BERT's family behind one interface: train, load, encode, build, save.

WordPiece and ALBERT's SentencePiece are trained here; whatever else a tokenizer.json can say is run as it stands.

Example:
    tokenizer = tokenizers.load("bert-base-uncased-vocab.txt")
    tokenizer = tokenizers.train("wordpiece", lines, vocab_size=8000)
"""

from collections.abc import Iterable

from bert_jax.errors import BertJaxError
from bert_jax.tokenizers.base import Encoding, Tokenizer
from bert_jax.tokenizers.loading import is_in, load
from bert_jax.tokenizers.unigram import train_sentencepiece
from bert_jax.tokenizers.wordpiece import train_wordpiece

__all__ = ["Encoding", "Tokenizer", "is_in", "load", "train"]


def train(kind: str, texts: Iterable[str], vocab_size: int, *, lowercase: bool = True) -> Tokenizer:
    """Learns a vocabulary of exactly `vocab_size` pieces (specials included) from texts of any length.

    The same texts give the same vocabulary, whatever the machine's thread count or hash seed. Corpora above
    `sampling.MAX_CHARACTERS` are sampled line by line, deterministically; one warning line says how much was read.
    `lowercase` also strips accents, as BERT's uncased models do; one warning line says where those are no accents but vowels.

    Raises BertJaxError for an unknown kind, an empty corpus, or a vocabulary size that the text cannot fill or that
    cannot hold its characters.
    """
    if kind == "wordpiece":
        return train_wordpiece(texts, vocab_size, lowercase=lowercase)
    if kind == "sentencepiece":
        return train_sentencepiece(texts, vocab_size, lowercase=lowercase)
    raise BertJaxError(f"unknown tokenizer kind {kind!r}: choose 'wordpiece' or 'sentencepiece'")
