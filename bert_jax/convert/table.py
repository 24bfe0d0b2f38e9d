"""The form of a conversion table: rows that pair one of our parameters with a tensor of another library."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bert_jax.models.config import Activation, EncoderConfig

Array = np.ndarray


class Transform(NamedTuple):
    """How one array changes on its way out and on its way back; ``load(export(a), a.shape) == a`` bit for bit."""

    export: Callable[[Array], Array]
    load: Callable[[Array, tuple[int, ...]], Array]


# PyTorch stores an affine map as [outputs, inputs], we as [inputs, outputs]; head axes N, H are one axis there.
SAME = Transform(lambda a: a, lambda a, _: a)
KERNEL = Transform(lambda a: a.T, lambda a, _: a.T)
KERNEL_TO_HEADS = Transform(lambda a: a.reshape(a.shape[0], -1).T, lambda a, shape: a.T.reshape(shape))
KERNEL_FROM_HEADS = Transform(lambda a: a.reshape(-1, a.shape[-1]).T, lambda a, shape: a.T.reshape(shape))
BIAS_OF_HEADS = Transform(lambda a: a.reshape(-1), lambda a, shape: a.reshape(shape))


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
        """First step of the path: embeddings, attention, feed_forward, or the name of a head."""
        return self.ours.partition("/")[0]


def affine(ours: str, theirs: str, transform: Transform = KERNEL) -> tuple[Row, Row]:
    """The two rows of an affine map; ``theirs`` is the name of the module."""
    bias = BIAS_OF_HEADS if transform is KERNEL_TO_HEADS else SAME
    return Row(f"{ours}/kernel", f"{theirs}.weight", transform), Row(f"{ours}/bias", f"{theirs}.bias", bias)


def norm(ours: str, theirs: str) -> tuple[Row, Row]:
    """The two rows of a layer norm; ``theirs`` is the name of the module."""
    return Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")


class Setting(NamedTuple):
    """One field of the configuration.

    Attributes:
      ours, theirs: its names. default: what the other library assumes where its file is silent; None: the file must say it,
        unless ``optional``.
      load: our value from (theirs, all of their settings). export: theirs from (ours, our configuration).
    """

    ours: str
    theirs: str
    default: str | int | float | None = None
    optional: bool = False
    load: Callable[[Any, Mapping[str, Any]], Any] = lambda value, _: value
    export: Callable[[Any, EncoderConfig], Any] = lambda value, _: value


# Keys of config.json that most families share.
COMMON_SETTINGS = (
    Setting("vocab_size", "vocab_size"),
    Setting("hidden_width", "hidden_size"),
    Setting("layers", "num_hidden_layers"),
    Setting("heads", "num_attention_heads"),
    Setting("ffn_width", "intermediate_size"),
    Setting("segments", "type_vocab_size", 2),
    Setting("attention_dropout", "attention_probs_dropout_prob", 0.1),
    Setting("dropout", "hidden_dropout_prob", 0.1),
    Setting("norm_eps", "layer_norm_eps", 1e-12),
    Setting("init_std", "initializer_range", 0.02),
)


# What every configuration of ours says for a family whose ``fixed`` says nothing else.
_USUAL = {"positions": "absolute", "mlm_transform": True}


@dataclass(frozen=True)
class Family:
    """One model family of Hugging Face transformers.

    Attributes:
      model_type: its name in config.json. base: prefix of the encoder's tensors, left out in files of the bare encoder.
      encoder: rows of the encoder. heads: rows of every head it can have; those of a later head replace rows of an earlier
        one for the same parameter (RoBERTa's classifier brings its own pooler).
      settings: the table of config.json.
      fixed: what every configuration of ours says beside the settings, e.g. that an ALBERT shares all.
      mlm_activation: that of the masked-language-model head, where their code fixes it; None: it is the encoder's.
      only: their settings whose other values make a different model. factorised: whether E may differ from D.
      architectures: class names with the heads that they have. The first entry of a class says what its file must hold;
        the first entry for given heads says which class is written.
      places: what fills the braces of ``theirs`` for every set of layer parameters of a plain configuration, in order.
      tied: tensors that repeat another one and are never written; where a file has them they must be equal.
      special_ids: keys of config.json that hold ids of the tokenizer, and the tokenizer's attribute.
      plain: the configuration of the same function in the family's own terms: what it cannot share is copied.
    """

    model_type: str
    base: str
    encoder: tuple[Row, ...]
    heads: Mapping[str, tuple[Row, ...]]
    settings: tuple[Setting, ...]
    fixed: Mapping[str, Any]
    architectures: tuple[tuple[str, tuple[str, ...]], ...]
    places: Callable[[EncoderConfig], list[dict[str, int]]]
    plain: Callable[[EncoderConfig], EncoderConfig]
    tied: Mapping[str, str]
    special_ids: Mapping[str, str]
    only: Mapping[str, Any]
    mlm_activation: Activation | None = None
    factorised: bool = False

    def rows(self, heads: tuple[str, ...]) -> list[Row]:
        """The rows of an encoder with these heads."""
        rows = {row.ours: row for row in self.encoder}
        for head, of_head in self.heads.items():
            if head in heads:
                rows |= {row.ours: row for row in of_head}
        return list(rows.values())

    def architecture(self, heads: tuple[str, ...]) -> str | None:
        """The class that has exactly these heads."""
        return next((name for name, has in self.architectures if set(has) == set(heads)), None)

    def computes_mlm_head_of(self, config: EncoderConfig) -> bool:
        """Whether its masked-language-model head has the activation that the configuration says."""
        theirs, ours = self.mlm_activation or config.activation, config.mlm_activation or config.activation
        return "mlm" not in config.with_heads or theirs == ours

    def reasons_against(self, config: EncoderConfig) -> Iterator[str]:
        """Why this family has no form of a configuration; nothing if it has one."""
        plain = self.plain(config)
        if self.architecture(plain.with_heads) is None:
            heads = ", ".join(plain.with_heads)
            has = "; ".join(sorted({" + ".join(has) for _, has in self.architectures if has}))
            yield f"no {self.model_type} class has exactly the heads {heads} (there are: {has})"
        if plain.embedding_width != plain.hidden_width and not self.factorised:
            yield f"{self.model_type} has no embeddings narrower than its hidden states"
        if not plain.segments and "segments" not in self.fixed:
            yield f"{self.model_type} has a table of segments"
        for name, value in (_USUAL | self.fixed).items():
            found = getattr(plain, name)
            if name == "pooler_activation" and "pooler" not in plain.with_heads:
                continue
            if name == "mlm_transform" and "mlm" not in plain.with_heads:
                continue
            if found != value:
                yield f"{self.model_type} has {name} {value!r}, here it is {found!r}"
