"""TensorFlow checkpoints of BERT, ALBERT and ELECTRA: how the code bases name their variables.

Google's originals (google-research/bert, albert, electra; TensorFlow 1) name a variable by its scope. The model garden
(tensorflow/models, TensorFlow 2) names it by the path from the checkpoint's root object to it. Values need no more than a
reshape: both store an affine map as [inputs, outputs], with the head axes N, H as one axis in TensorFlow 1.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bert_jax.convert.albert import group_places
from bert_jax.convert.bert import layer_places
from bert_jax.convert.bundle import TensorBundle
from bert_jax.convert.table import SAME, Row, Transform
from bert_jax.errors import BertJaxError
from bert_jax.models.config import EncoderConfig

FROM_WIDTH = Transform(export=lambda a: a.reshape(a.shape[0], -1), load=lambda a, shape: a.reshape(shape))  # [D, N, H]
TO_WIDTH = Transform(export=lambda a: a.reshape(-1, a.shape[-1]), load=lambda a, shape: a.reshape(shape))  # [N, H, D]
FLAT = Transform(export=lambda a: a.reshape(-1), load=lambda a, shape: a.reshape(shape))  # [N, H]
TRANSPOSED = Transform(export=lambda a: a.T, load=lambda a, _: a.T)


def _affine(ours: str, theirs: str, kernel: Transform = SAME, bias: Transform = SAME) -> tuple[Row, Row]:
    return Row(f"{ours}/kernel", f"{theirs}/kernel", kernel), Row(f"{ours}/bias", f"{theirs}/bias", bias)


def _output(ours: str, theirs: str) -> tuple[Row, Row]:
    """Google's last layers are [C, D]; ``theirs`` is what stands before `output_weights`, a slash included."""
    return Row(f"{ours}/kernel", f"{theirs}output_weights", TRANSPOSED), Row(f"{ours}/bias", f"{theirs}output_bias")


def _norm(ours: str, theirs: str) -> tuple[Row, Row]:
    return Row(f"{ours}/scale", f"{theirs}/gamma"), Row(f"{ours}/bias", f"{theirs}/beta")


def _as_stored(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


MARKERS = ("embeddings/token", "attention/query/kernel")  # what every encoder has


@dataclass(frozen=True)
class Naming:
    """The names that one code base gives to the variables of one kind of model.

    Attributes:
      name: for messages and for a user to choose by. model_type: of the family in Hugging Face's config.json.
      encoder, heads: the rows, as in :class:`bert_jax.convert.table.Family`; ``{layer}`` or ``{group}`` and ``{inner}`` count
        the layers. Every transform's ``load`` takes our shape.
      needs, lacks: a name that must be there, and the start of names that must not be, for this naming to apply; or "".
      ignored: what a checkpoint holds besides, to be left out without a word: optimizer, counters, and ELECTRA's other model.
      places: what fills the braces for every set of layer parameters of a configuration, in order.
      config_files: names of the file with the settings; none where it would describe another model of the checkpoint.
      dropout: both rates, where the file is silent. gelu: what `gelu` in the file means, in Hugging Face's words.
      to_table: stored names by the names of the table, where the two differ.
    """

    name: str
    model_type: str
    encoder: tuple[Row, ...]
    heads: Mapping[str, tuple[Row, ...]]
    ignored: re.Pattern
    config_files: tuple[str, ...]
    gelu: str
    needs: str = ""
    lacks: str = ""
    places: Callable[[EncoderConfig], list[dict[str, int]]] = layer_places
    dropout: float = 0.1
    to_table: Callable[[Iterable[str]], dict[str, str]] = _as_stored

    def fits(self, names: Iterable[str]) -> bool:
        """Whether a checkpoint with these variables holds an encoder of this naming: its token table and first layer."""
        there = self.to_table(names)
        wanted = {self.table_name(path, layer=0, group=0, inner=0) for path in MARKERS} | {self.needs} - {""}
        others = self.lacks and any(name.startswith(self.lacks) for name in there)
        return wanted <= there.keys() and not others

    def heads_in(self, names: Iterable[str]) -> tuple[str, ...]:
        """The heads whose every variable is there."""
        there = self.to_table(names)
        return tuple(head for head, rows in self.heads.items() if rows and all(row.theirs in there for row in rows))

    def table_name(self, ours: str, **place: int) -> str:
        """The table's name of an encoder parameter of ours, its braces filled."""
        return next(row.theirs for row in self.encoder if row.ours == ours).format(**place)


def recognise(bundle: TensorBundle) -> tuple[Naming, ...]:
    """The namings of the models in a checkpoint; ELECTRA's has two, the discriminator first.

    Raises:
      BertJaxError: the names are those of no model that is known here.
    """
    found = tuple(naming for naming in NAMINGS if naming.fits(bundle.shapes))
    if not found:
        names = ", ".join(list(bundle.shapes)[:3])
        raise BertJaxError(
            f"{bundle.path}: its {len(bundle.shapes)} variables ({names}, ...) are not named as in BERT, ALBERT or ELECTRA "
            "of google-research or BERT of the model garden"
        )
    return found


# TensorFlow 1

_OPTIMIZER = r"global_step$|.*/(adam|lamb)_[mv]$|.*/Adam(_1)?$|beta[12]_power$"


def _scoped_encoder(scope: str, embeddings: str) -> tuple[Row, ...]:
    layer = f"{scope}/encoder/layer_{{layer}}"
    return (
        *_scoped_embeddings(embeddings),
        *_attention(f"{layer}/attention"),
        *_norm("attention/norm", f"{layer}/attention/output/LayerNorm"),
        *_affine("feed_forward/intermediate", f"{layer}/intermediate/dense"),
        *_affine("feed_forward/output", f"{layer}/output/dense"),
        *_norm("feed_forward/norm", f"{layer}/output/LayerNorm"),
    )


def _scoped_embeddings(scope: str) -> tuple[Row, ...]:
    return (
        Row("embeddings/token", f"{scope}/embeddings/word_embeddings"),
        Row("embeddings/position", f"{scope}/embeddings/position_embeddings"),
        Row("embeddings/segment", f"{scope}/embeddings/token_type_embeddings"),
        *_norm("embeddings/norm", f"{scope}/embeddings/LayerNorm"),
    )


def _attention(scope: str) -> tuple[Row, ...]:
    return (
        *_affine("attention/query", f"{scope}/self/query", FROM_WIDTH, FLAT),
        *_affine("attention/key", f"{scope}/self/key", FROM_WIDTH, FLAT),
        *_affine("attention/value", f"{scope}/self/value", FROM_WIDTH, FLAT),
        *_affine("attention/output", f"{scope}/output/dense", TO_WIDTH),
    )


_SCOPED_HEADS = {
    "pooler": _affine("pooler/dense", "bert/pooler/dense"),
    "mlm": (
        *_affine("mlm/transform", "cls/predictions/transform/dense"),
        *_norm("mlm/norm", "cls/predictions/transform/LayerNorm"),
        Row("mlm/bias", "cls/predictions/output_bias"),
    ),
    "pair": _output("pair/dense", "cls/seq_relationship/"),
    "classifier": _output("classifier/dense", ""),
}

# google-research/bert/modeling.py. Its gelu is the tanh form since February 2019; at the first release it was the erf form.
BERT_TF1 = Naming(
    name="bert-tf1",
    model_type="bert",
    encoder=_scoped_encoder("bert", "bert"),
    heads=_SCOPED_HEADS | {"span": _output("span/dense", "cls/squad/")},
    ignored=re.compile(_OPTIMIZER),
    config_files=("bert_config.json",),
    gelu="gelu_new",
)

_GROUP = "bert/encoder/transformer/group_{group}/inner_group_{inner}"

# google-research/albert/modeling.py
ALBERT_TF1 = Naming(
    name="albert-tf1",
    model_type="albert",
    encoder=(
        *_scoped_embeddings("bert"),
        *_affine("embeddings/projection", "bert/encoder/embedding_hidden_mapping_in"),
        *_attention(f"{_GROUP}/attention_1"),
        *_norm("attention/norm", f"{_GROUP}/LayerNorm"),
        *_affine("feed_forward/intermediate", f"{_GROUP}/ffn_1/intermediate/dense"),
        *_affine("feed_forward/output", f"{_GROUP}/ffn_1/intermediate/output/dense"),
        *_norm("feed_forward/norm", f"{_GROUP}/LayerNorm_1"),
    ),
    heads=_SCOPED_HEADS,
    ignored=re.compile(_OPTIMIZER),
    config_files=("albert_config.json",),
    gelu="gelu_new",
    places=group_places,
    dropout=0.0,
)


def _electra(scope: str, embeddings: str, lacks: str = "") -> Naming:
    """google-research/electra/run_pretraining.py: the generator of a checkpoint, whose parts may be the discriminator's."""
    return Naming(
        name="electra-generator-tf1",
        model_type="electra",
        encoder=_scoped_encoder(scope, embeddings) + _affine("embeddings/projection", f"{scope}/embeddings_project"),
        heads={
            "mlm": (
                *_affine("mlm/transform", "generator_predictions/dense"),
                *_norm("mlm/norm", "generator_predictions/LayerNorm"),
                Row("mlm/bias", "generator_predictions/output_bias"),
            )
        },
        ignored=re.compile(rf"{_OPTIMIZER}|electra/|discriminator_predictions/"),
        config_files=(),
        gelu="gelu",
        needs="generator_predictions/output_bias",
        lacks=lacks,
    )


# Its gelu is the erf form.
ELECTRA_TF1 = Naming(
    name="electra-tf1",
    model_type="electra",
    encoder=_scoped_encoder("electra", "electra") + _affine("embeddings/projection", "electra/embeddings_project"),
    heads={
        "discriminator": (
            *_affine("discriminator/transform", "discriminator_predictions/dense"),
            *_affine("discriminator/output", "discriminator_predictions/dense_1"),
        )
    },
    ignored=re.compile(rf"{_OPTIMIZER}|generator(_predictions)?/"),
    config_files=("electra_config.json", "bert_config.json"),
    gelu="gelu",
)
ELECTRA_GENERATOR_TF1 = _electra("generator", "electra", lacks="generator/embeddings/")
ELECTRA_UNTIED_GENERATOR_TF1 = _electra("generator", "generator")
# One network for both tasks, or the authors' BERT: the head of a generator on the layers of the discriminator.
ELECTRA_TIED_GENERATOR_TF1 = _electra("electra", "electra", lacks="generator/")


# TensorFlow 2

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# Checkpoints whose root is the encoder, a model around it, or training with both.
_ROOT = re.compile(r"^(model/)?(encoder(_network)?/)?")
_KERAS_LAYER = re.compile(r"layer_with_weights-(\d+)/(.+)")
_FIRST_LAYERS = ("_embedding_layer", "_position_embedding_layer", "_type_embedding_layer", "_embedding_norm_layer")


def _from_objects(names: Iterable[str]) -> dict[str, str]:
    """Stored names by those of `BertEncoderV2`, which the table uses.

    `BertEncoder` numbers its layers instead: four of the embeddings, the transformer's, the pooler. A name that has no place
    here stands for itself.
    """
    table = {}
    for stored in sorted(names):
        name = _ROOT.sub("", stored.removesuffix(_VALUE))
        if match := _KERAS_LAYER.fullmatch(name):
            index, rest = int(match[1]), match[2]
            if index < len(_FIRST_LAYERS):
                name = f"{_FIRST_LAYERS[index]}/{rest}"
            elif rest in ("kernel", "bias"):
                name = f"_pooler_layer/{rest}"
            else:
                name = f"_transformer_layers/{index - len(_FIRST_LAYERS)}/{rest}"
        name = name.replace("/_attention_output_dense/", "/_attention_layer/_output_dense/")
        if name == "masked_lm/embedding_table":  # the shorter path to the tied table
            name = "_embedding_layer/embeddings"
        table[stored if name in table else name] = stored
    # The next-sentence head has a pooler of its own; the encoder's then takes no part in training.
    for path in ("next_sentence..pooler_dense", "classification_heads/0/dense"):
        for part in ("kernel", "bias"):
            if f"{path}/{part}" in table:
                if unused := table.get(f"_pooler_layer/{part}"):
                    table[unused] = unused
                table[f"_pooler_layer/{part}"] = table.pop(f"{path}/{part}")
    return table


_BLOCK = "_transformer_layers/{layer}"

# tensorflow/models: official/nlp/modeling/networks/bert_encoder.py, official/nlp/modeling/models/bert_pretrainer.py
BERT_TF2 = Naming(
    name="bert-tf2",
    model_type="bert",
    encoder=(
        Row("embeddings/token", "_embedding_layer/embeddings"),
        Row("embeddings/position", "_position_embedding_layer/embeddings"),
        Row("embeddings/segment", "_type_embedding_layer/embeddings"),
        *_norm("embeddings/norm", "_embedding_norm_layer"),
        *_affine("attention/query", f"{_BLOCK}/_attention_layer/_query_dense"),
        *_affine("attention/key", f"{_BLOCK}/_attention_layer/_key_dense"),
        *_affine("attention/value", f"{_BLOCK}/_attention_layer/_value_dense"),
        *_affine("attention/output", f"{_BLOCK}/_attention_layer/_output_dense"),
        *_norm("attention/norm", f"{_BLOCK}/_attention_layer_norm"),
        *_affine("feed_forward/intermediate", f"{_BLOCK}/_intermediate_dense"),
        *_affine("feed_forward/output", f"{_BLOCK}/_output_dense"),
        *_norm("feed_forward/norm", f"{_BLOCK}/_output_layer_norm"),
    ),
    heads={
        "pooler": _affine("pooler/dense", "_pooler_layer"),
        "mlm": (
            *_affine("mlm/transform", "masked_lm/dense"),
            *_norm("mlm/norm", "masked_lm/layer_norm"),
            Row("mlm/bias", "masked_lm/output_bias.Sbias"),  # .S is TensorFlow's word for a slash
        ),
        "pair": _affine("pair/dense", "classification_heads/0/out_proj"),
    },
    ignored=re.compile(rf"(save_counter|global_step){_VALUE}|(.*/)?optimizer/|.*/\.OPTIMIZER_SLOT/"),
    config_files=("bert_config.json",),
    gelu="gelu_new",
    to_table=_from_objects,
)

NAMINGS = (
    BERT_TF1, ALBERT_TF1, ELECTRA_TF1, ELECTRA_GENERATOR_TF1, ELECTRA_UNTIED_GENERATOR_TF1, ELECTRA_TIED_GENERATOR_TF1,
    BERT_TF2,
)  # fmt: skip
