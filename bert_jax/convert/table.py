"""The form of a conversion table: rows that pair one of our parameters with a tensor of the other library."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bert_jax.models.config import EncoderConfig

Array = np.ndarray


class Transform(NamedTuple):
    """How one array changes on its way out and on its way back; ``load(export(a)) == a`` bit for bit."""

    export: Callable[[Array], Array]
    load: Callable[[Array, EncoderConfig], Array]


def _split_last(a: Array, config: EncoderConfig) -> Array:
    return a.reshape(*a.shape[:-1], config.heads, config.head_width)


# PyTorch stores an affine map as [outputs, inputs], we as [inputs, outputs]; head axes N, H are one axis there.
SAME = Transform(lambda a: a, lambda a, _: a)
KERNEL = Transform(lambda a: a.T, lambda a, _: a.T)
KERNEL_TO_HEADS = Transform(lambda a: a.reshape(a.shape[0], -1).T, lambda a, config: _split_last(a.T, config))
KERNEL_FROM_HEADS = Transform(
    lambda a: a.reshape(-1, a.shape[-1]).T,
    lambda a, config: a.T.reshape(config.heads, config.head_width, -1),
)
BIAS_OF_HEADS = Transform(lambda a: a.reshape(-1), _split_last)


class Row(NamedTuple):
    """One parameter.

    Attributes:
      ours: path in our tree. Below "attention" and "feed_forward" the row stands for one layer of the stack.
      theirs: name of the tensor, with ``{layer}`` or ``{group}`` and ``{inner}`` in the rows of layers.
      transform: between the two arrays.
      absent: for a parameter that they always have and we only sometimes: the value [as theirs] that makes it do
        nothing. It is written where ours is absent; read back, that value is dropped and any other is refused.
    """

    ours: str
    theirs: str
    transform: Transform = SAME
    absent: Callable[[EncoderConfig], Array] | None = None

    @property
    def part(self) -> str:
        """First step of the path: embeddings, attention, feed_forward, pooler, mlm or pair."""
        return self.ours.partition("/")[0]


class Setting(NamedTuple):
    """One field of the configuration. ``default`` is what the other library assumes where its file is silent; None
    means that the file must say it."""

    ours: str
    theirs: str
    default: str | int | float | None = None


@dataclass(frozen=True)
class Family:
    """One model family of Hugging Face transformers.

    Attributes:
      model_type: its name in config.json. base: prefix of the encoder's tensors, left out in files of the bare encoder.
      rows, settings: the tables.
      fixed: what every configuration of ours says beside the settings, e.g. that an ALBERT shares all.
      architectures: the class to load by the heads that own parameters.
      plain: the configuration of the same function in the family's own terms: what it cannot share is copied.
      places: what fills the braces of ``theirs`` for every set of layer parameters of a plain configuration, in order.
      tied: tensors that repeat another one and are never written; where a file has them they must be equal.
      special_ids: keys of config.json that hold ids of the tokenizer, and the tokenizer's attribute.
    """

    model_type: str
    base: str
    rows: tuple[Row, ...]
    settings: tuple[Setting, ...]
    fixed: dict[str, str]
    architectures: dict[tuple[str, ...], str]
    plain: Callable[[EncoderConfig], EncoderConfig]
    places: Callable[[EncoderConfig], list[dict[str, int]]]
    tied: dict[str, str]
    special_ids: dict[str, str]
