"""Kinds of examples: how sequences are made of a store's text. ``EXAMPLES`` is what a configuration may choose from."""

from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.data.streams import Streams
from bert_jax.data.translations import Translations

EXAMPLES = (PairSpec, Streams, Reordered, Translations)
AnyExamples = PairSpec | Streams | Reordered | Translations


def examples_that_give(key: str) -> str:
    """The advice that ends a refusal: which kinds of examples give ``key``."""
    kinds = [advice for kind in EXAMPLES for advice in kind.ways_to_give(key)]
    return f"; use {' or '.join(kinds)}" if kinds else ""
