"""Kinds of examples: how sequences are cut from documents. ``EXAMPLES`` is the list that a configuration may choose from."""

from bert_jax.data.pairs import PairSpec

EXAMPLES = (PairSpec,)
AnyExamples = PairSpec


def examples_that_give(key: str) -> str:
    """The advice that ends a refusal: which kinds of examples give ``key``."""
    kinds = [advice for kind in EXAMPLES for advice in kind.ways_to_give(key)]
    return f"; use {' or '.join(kinds)}" if kinds else ""
