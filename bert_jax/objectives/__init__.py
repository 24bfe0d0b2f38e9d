"""Pre-training objectives, one file each; ``AnyObjective`` is the list that a configuration may choose from."""

from typing import get_args

from bert_jax.objectives.capitalisation import Capitalisation
from bert_jax.objectives.denoising import Denoising
from bert_jax.objectives.distance import Distance
from bert_jax.objectives.mlm import MaskedLM
from bert_jax.objectives.nsp import NextSentence
from bert_jax.objectives.permutation import PermutationLM
from bert_jax.objectives.pseudo_masked import PseudoMasked
from bert_jax.objectives.reordering import Reordering
from bert_jax.objectives.replaced_tokens import ReplacedTokens
from bert_jax.objectives.sop import SentenceOrder
from bert_jax.objectives.span_boundary import SpanBoundary
from bert_jax.objectives.structural import Structural
from bert_jax.objectives.token_document import TokenDocument
from bert_jax.objectives.word_order import WordOrder

AnyObjective = (
    MaskedLM | NextSentence | SentenceOrder | Capitalisation | Distance | Reordering | Structural | TokenDocument
    | WordOrder | ReplacedTokens | Denoising | SpanBoundary | PseudoMasked | PermutationLM
)
OBJECTIVES = get_args(AnyObjective)
