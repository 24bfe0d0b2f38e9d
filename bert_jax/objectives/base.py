"""What an objective is: a corruption of the batch on the device and a loss on the outputs of the encoder."""

from typing import NamedTuple, Protocol

from jaxtyping import Array, Key

from bert_jax.models.api import Outputs
from bert_jax.task import Batch, Ratio


class Pieces(NamedTuple):
    """What objectives need to know of a tokenizer: V, the mask id, and the ids that are never masked nor drawn."""

    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...]


class Objective(Protocol):
    """One pre-training objective. Implementations are frozen dataclasses, one file each.

    Attributes:
      name: prefix of its metrics. heads: heads it needs. needs: batch keys it needs.
    """

    name: str
    heads: tuple[str, ...]
    needs: tuple[str, ...]

    def corrupt(self, batch: Batch, key: Key[Array, ""], pieces: Pieces) -> Batch:
        """The batch as the encoder shall see it; a pure function with static shapes, run inside the compiled step."""

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """``loss`` in nats (the term to minimise) and further metrics, as sums over the batch."""
