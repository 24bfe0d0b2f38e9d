"""What an encoder is, as one frozen value, and every published size of BERT and ALBERT."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from bert_jax.errors import BertJaxError

Activation = Literal["gelu", "gelu_new", "quick_gelu", "relu"]
Share = Literal["none", "attention", "feed_forward", "all"]
Remat = Literal["masks", "elementwise", "attention", "feed_forward", "full"]
Attention = Literal["auto", "xla", "fused"]
Positions = Literal["absolute", "relative"]
Head = Literal["pooler", "mlm", "pair", "classifier", "tagger", "span", "choice", "discriminator"]

FUSED_WIDTHS = (16, 32, 64, 128)
"""Widths of heads for fused attention: the sides of its blocks are powers of two, and Triton's products begin at 16."""


@dataclass(frozen=True)
class EncoderConfig:
    """A BERT-family encoder. The defaults are BERT-base, uncased (Devlin et al. 2019).

    Attributes:
      vocab_size: V, the number of pieces in the tokenizer.
      embedding_width: E; when it differs from ``hidden_width`` the embeddings are factorised (ALBERT section 3.1).
      hidden_width: D. layers: blocks of attention and feed-forward, before ``inner_layers``. heads: N; head width is D/N.
      ffn_width: F. max_length: longest sequence. segments: S, rows of the segment table; 1: its row is every token's, whatever
        the segment ids (RoBERTa); 0: there is none (DistilBERT).
      positions: ``absolute``: tables of positions and segments are added to the embeddings. ``relative``: the encoder of XLNet,
        :mod:`bert_jax.models.relative`: no tables, no layer norm of the embeddings; segments count as same or different, so
        that S is 2 (or 0: not at all).
      position_offset: rows of the position table before that of the first token; the table has ``max_length`` more.
        RoBERTa has 2: its positions count on from the id of the padding piece.
      activation: gelu = erf form (Hugging Face BERT), gelu_new = tanh form (the TensorFlow originals, ALBERT),
        quick_gelu = sigmoid form, relu.
      pooler_activation: tanh in BERT, ALBERT and RoBERTa; gelu in ELECTRA and relu in DistilBERT, whose pooler belongs to
        their classifiers. mlm_activation: of the masked-language-model head; None: as ``activation``. mlm_transform: whether
        that head has an affine map, activation and layer norm before the product with the token table; XLNet's has not.
      share: which parameters the layers share. groups: sets of shared parameters over the depth; inner_layers: different
        layers applied one after another inside each step of depth (ALBERT's num_hidden_groups, inner_group_num).
      dropout, attention_dropout: rates in training for hidden states and attention probabilities.
      vocab_multiple: the token table has V rounded up to this many rows (1,024 suits TPUs and up to eight shards);
        the added rows never receive probability and are cut on export.
      with_heads: which heads own parameters; :mod:`bert_jax.models.heads` says what each computes.
      labels: names of the classes of ``classifier`` and ``tagger``; their number C is the width of both.
      head_dropout: rate in training before ``classifier``, ``tagger`` and ``choice``; None: as ``dropout``.
      read_layers: numbers of the layers that the heads read, ascending; 0: the embeddings; empty: the last one. Layers after
        the highest are neither run nor part of the tree. (The last one alone did best in Sun et al. 2019.)
      combine: of several layers: ``mix``, scale * sum of softmax(weights) * states, both learned (Peters et al. 2018, equation
        1); ``concatenate``, side by side (Devlin et al. 2019, section 5.3: the last four), which makes heads wider.
      lora_rank: r; where above 0, queries and values have a map of low rank beside theirs (Hu et al. 2021), and of the encoder
        only these are trained; :func:`bert_jax.models.api.merged` adds them up. lora_alpha: the maps' factor times r
        (8, as in peft).
      compute_dtype: of activations and matrix products; parameters, layer-norm statistics, softmax and losses are float32.
      attention: how it is computed, with the same result up to rounding, dropout's mask included: ``xla`` by plain products of
        matrices; ``fused`` by kernels for NVIDIA's GPUs and for TPUs (:mod:`bert_jax.models.fused_attention`; on processors
        they are interpreted, for tests); ``auto``: fused where that was measured to be faster, which is on Hopper (H100,
        H200) in bfloat16 with heads of a width in ``FUSED_WIDTHS``, otherwise xla. Relative positions are always xla.
      remat: what the backward pass computes again instead of storing, from cheap to thrifty, each with all before it:
        ``masks`` dropout masks and the statistics of layer norms (what a product of matrices reads is kept: fastest on a GPU
        with memory to spare), ``elementwise`` everything that is no product (activations and layer norms as well),
        ``attention`` the scores and probabilities [B, N, L, L], ``feed_forward`` the first of its products [B, L, F], ``full``
        everything inside a layer.
      unroll: a Python loop over layers instead of a scan: the same numbers, longer compilation.
    """

    vocab_size: int = 30522
    embedding_width: int = 768
    hidden_width: int = 768
    layers: int = 12
    heads: int = 12
    ffn_width: int = 3072
    max_length: int = 512
    positions: Positions = "absolute"
    position_offset: int = 0
    segments: int = 2
    activation: Activation = "gelu"
    pooler_activation: Literal["tanh", "gelu", "relu"] = "tanh"
    mlm_activation: Activation | None = None
    mlm_transform: bool = True
    share: Share = "none"
    groups: int = 1
    inner_layers: int = 1
    dropout: float = 0.1
    attention_dropout: float = 0.1
    norm_eps: float = 1e-12
    init_std: float = 0.02
    vocab_multiple: int = 1
    with_heads: tuple[Head, ...] = ("pooler", "mlm", "pair")
    labels: tuple[str, ...] = ()
    head_dropout: float | None = None
    read_layers: tuple[int, ...] = ()
    combine: Literal["mix", "concatenate"] = "mix"
    lora_rank: int = 0
    lora_alpha: float = 8.0
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Attention = "auto"
    remat: Remat = "elementwise"
    unroll: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "embedding_width", "hidden_width", "layers", "heads", "ffn_width", "max_length",
                     "groups", "inner_layers", "vocab_multiple"):
            most = 10_000 if name in ("layers", "groups", "inner_layers") else 2**31 - 1  # more can only be a mistake
            if not 1 <= getattr(self, name) <= most:
                raise BertJaxError(f"encoder.{name} is {getattr(self, name)}: it must be at least 1 and at most {most:,}")
        for name in ("segments", "position_offset", "lora_rank"):
            if not 0 <= getattr(self, name) < 2**31:
                raise BertJaxError(f"encoder.{name} is {getattr(self, name)}: it must not be negative, nor beyond 2**31")
        for name in ("dropout", "attention_dropout", "head_dropout"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise BertJaxError(f"encoder.{name} is {getattr(self, name)}: it must be in [0, 1)")
        if self.hidden_width % self.heads:
            raise BertJaxError(f"encoder.hidden_width {self.hidden_width} is not a multiple of heads {self.heads}")
        if self.positions == "relative" and self.segments not in (0, 2):
            raise BertJaxError(f"encoder.segments is {self.segments}: with relative positions 2 (same, different) or 0")
        if self.positions == "relative" and (self.hidden_width % 2 or self.position_offset):
            raise BertJaxError("encoder.positions=relative needs an even encoder.hidden_width, and no encoder.position_offset")
        if self.attention == "fused" and (self.positions == "relative" or self.head_width not in FUSED_WIDTHS):
            raise BertJaxError(
                f"encoder.attention=fused needs absolute positions and heads of width {', '.join(map(str, FUSED_WIDTHS))}; "
                f"here positions are {self.positions} and heads {self.head_width} wide: use auto or xla"
            )
        if not self.mlm_transform and self.embedding_width != self.hidden_width:
            raise BertJaxError("encoder.mlm_transform=false needs an encoder.embedding_width equal to hidden_width")
        if self.layers % self.groups:
            raise BertJaxError(f"encoder.layers {self.layers} is not a multiple of groups {self.groups}")
        if self.share == "none" and (self.groups, self.inner_layers) != (1, 1):
            raise BertJaxError("encoder.groups and encoder.inner_layers need shared parameters: set encoder.share")
        if list(self.read_layers) != sorted(set(self.read_layers)) or not (
            set(self.read_layers) <= set(range(self.layers * self.inner_layers + 1)) and self.depth
        ):
            raise BertJaxError(
                f"encoder.read_layers is {self.read_layers}: ascending numbers from 0 (the embeddings) to "
                f"{self.layers * self.inner_layers}, none twice, and not 0 alone"
            )
        if self.concatenated > 1 and "mlm" in self.with_heads and not self.mlm_transform:
            raise BertJaxError("encoder.combine=concatenate with an mlm head needs its transform (encoder.mlm_transform)")
        if self.lora_rank > self.hidden_width or not self.lora_alpha > 0:
            raise BertJaxError(
                f"encoder.lora_rank {self.lora_rank} must not be above hidden_width {self.hidden_width}, and lora_alpha "
                f"{self.lora_alpha} must be above 0"
            )
        for head in ("pair", "classifier", "choice"):
            if head in self.with_heads and "pooler" not in self.with_heads:
                raise BertJaxError(f"encoder.with_heads has {head!r} without 'pooler', which feeds it")
        if {"classifier", "tagger"} & set(self.with_heads) and not self.labels:
            raise BertJaxError("encoder.labels is empty: name the classes that the classifier or tagger tells apart")

    @property
    def head_width(self) -> int:
        """H."""
        return self.hidden_width // self.heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token table: V rounded up to a multiple of ``vocab_multiple``."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def depth(self) -> int:
        """Layers applied to the input, inner layers counted: none after the last that is read."""
        return max(self.read_layers, default=self.layers * self.inner_layers)

    @property
    def concatenated(self) -> int:
        """How many layers' states lie side by side before the heads."""
        return max(1, len(self.read_layers)) if self.combine == "concatenate" else 1

    def copies(self, part: Literal["attention", "feed_forward"]) -> int:
        """How many sets of parameters the attention or feed-forward blocks have: ``depth`` unless shared."""
        shared = self.share in (part, "all")
        return self.groups * self.inner_layers if shared else self.depth

    def in_order(self, part: Literal["attention", "feed_forward"]) -> bool:
        """Whether the sets of parameters are used one after another, each once."""
        steps = tuple(range(self.depth))
        return self.share not in (part, "all") or (self.copies(part) == self.depth and self.shared_index == steps)

    @property
    def shared_index(self) -> tuple[int, ...]:
        """Which shared set each step of depth uses: groups split the depth evenly, inner layers alternate inside."""
        per_group = self.layers // self.groups
        return tuple(
            (step // self.inner_layers // per_group) * self.inner_layers + step % self.inner_layers
            for step in range(self.depth)
        )


def _bert(layers: int, width: int, **changes) -> EncoderConfig:
    return EncoderConfig(
        embedding_width=width, hidden_width=width, layers=layers, heads=width // 64, ffn_width=4 * width, **changes
    )


def _albert(layers: int, width: int, heads: int, dropout: float) -> EncoderConfig:
    # Released ALBERT v1: dropout 0.1 on hidden states and probabilities, but 0 for xxlarge; v2: 0 throughout.
    return EncoderConfig(
        vocab_size=30000, embedding_width=128, hidden_width=width, layers=layers, heads=heads, ffn_width=4 * width,
        activation="gelu_new", share="all", dropout=dropout, attention_dropout=dropout,
    )


# Vocabulary sizes of the released checkpoints: uncased 30,522, cased 28,996, multilingual cased 119,547,
# multilingual uncased 105,879, Chinese 21,128; small models are Turc et al. 2019 (uncased).
PRESETS: dict[str, EncoderConfig] = {
    "bert-tiny": _bert(2, 128),
    "bert-mini": _bert(4, 256),
    "bert-small": _bert(4, 512),
    "bert-medium": _bert(8, 512),
    "bert-base": _bert(12, 768),
    "bert-large": _bert(24, 1024),
    "bert-base-cased": _bert(12, 768, vocab_size=28996),
    "bert-large-cased": _bert(24, 1024, vocab_size=28996),
    "bert-base-multilingual-cased": _bert(12, 768, vocab_size=119547),
    "bert-base-multilingual-uncased": _bert(12, 768, vocab_size=105879),
    "bert-base-chinese": _bert(12, 768, vocab_size=21128),
    "albert-base-v1": _albert(12, 768, 12, 0.1),
    "albert-large-v1": _albert(24, 1024, 16, 0.1),
    "albert-xlarge-v1": _albert(24, 2048, 16, 0.1),
    "albert-xxlarge-v1": _albert(12, 4096, 64, 0.0),
    "albert-base-v2": _albert(12, 768, 12, 0.0),
    "albert-large-v2": _albert(24, 1024, 16, 0.0),
    "albert-xlarge-v2": _albert(24, 2048, 16, 0.0),
    "albert-xxlarge-v2": _albert(12, 4096, 64, 0.0),
}


def preset(name: str, **changes) -> EncoderConfig:
    """A published size by name, with fields replaced.

    Raises:
      BertJaxError: no such preset.
    """
    if name not in PRESETS:
        raise BertJaxError(f"no preset {name!r}; choose from {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name], **changes)
