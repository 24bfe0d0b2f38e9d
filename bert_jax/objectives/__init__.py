"""Pre-training objectives, one file each; ``OBJECTIVES`` is the list that a configuration may choose from."""

from bert_jax.objectives.mlm import MaskedLM
from bert_jax.objectives.nsp import NextSentence
from bert_jax.objectives.sop import SentenceOrder

OBJECTIVES = (MaskedLM, NextSentence, SentenceOrder)
AnyObjective = MaskedLM | NextSentence | SentenceOrder
