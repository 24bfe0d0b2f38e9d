"""What a checkpoint is and what loading it would do, from its settings and headers: no weights are read."""

import math
import os
from typing import NamedTuple

from bert_jax.checkpoint import saved_steps
from bert_jax.convert import hf
from bert_jax.convert.reading import LAYERS, NOTES, Origin, Plan, noted, tree_shapes
from bert_jax.convert.tensors import DTYPES, Safetensors, Tensors
from bert_jax.embedding.settings import SentenceSettings
from bert_jax.errors import BertJaxError
from bert_jax.model import BEST, CHECKPOINTS, PARAMS, Place, best_metric, described, find, load_tokenizer, plan_of
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers import Tokenizer

_SOURCES = {
    "workdir": "work directory", "bert_jax": "directory of bert-jax", "hf": "Hugging Face directory",
    "tensorflow": "TensorFlow checkpoint",
}  # fmt: skip


class Report(NamedTuple):
    """What :func:`inspect` finds.

    Attributes:
      lines: (what, value) in the order of printing; what is empty where a line goes on with the one above.
      missing, dropped: names of tensors that the settings ask for and the file lacks, and of those that loading leaves out.
      new_heads: heads that could begin untrained for what is missing; none where the encoder lacks something.
    """

    config: EncoderConfig
    tokenizer: Tokenizer | None
    lines: list[tuple[str, str]]
    missing: list[str]
    new_heads: list[str]
    dropped: list[str]

    def __str__(self) -> str:
        width = max(len(what) for what, _ in self.lines)
        return "\n".join(f"{what:{width}}  {value}" for what, value in self.lines)

    __repr__ = __str__  # what a notebook shows


def inspect(path: str | os.PathLike) -> Report:
    """Looks at anything that :func:`bert_jax.load` takes.

    Raises:
      BertJaxError: as ``load`` does, but for damage inside the weights and for missing tensors, which are listed.
    """
    place = find(path)
    kind = "sentence-transformers directory" if place.kind == "hf" and place.sentence else _SOURCES[place.kind]
    source = [("source", f"{kind} {place.path}")]
    missing, new_heads, dropped = [], [], []
    if place.kind in ("workdir", "bert_jax"):
        config, sentence, origin = described(place)
        converted = origin and place.kind == "bert_jax"
        source.append(("family", f"{origin.family}, converted" if converted else _family(config, origin)))
        if place.kind == "workdir":
            source.append(("checkpoints", _steps(place)))
        else:
            tensors, shapes = Safetensors(place.path / PARAMS, [place.path / PARAMS]), tree_shapes(config)
            missing, dropped = sorted(shapes.keys() - tensors.shapes.keys()), sorted(tensors.shapes.keys() - shapes.keys())
            source.append(("weights", _weights(tensors)))
    else:
        plan = plan_of(place)
        sentence, origin = place.sentence, plan.origin
        config = noted(plan.config, origin.settings.get(NOTES, {}), plan.tensors.path)
        missing, new_heads, dropped = plan.missing, plan.new_heads if _has_encoder(plan) else [], plan.dropped
        classes = ", ".join(origin.settings.get("architectures") or ())
        source.append(("family", origin.family + (f" ({classes})" if classes else "")))
        source.append(("weights", _weights(plan.tensors)))
    tokenizer = load_tokenizer(place, None)
    lines = source + _encoder(config) + _tokenizer(tokenizer, config) + _sentence(sentence)
    if missing:
        heads = ", ".join(new_heads)
        begun = f"convert --allow-missing begins with new, untrained: {heads}"
        without = begun if new_heads else "this checkpoint cannot be loaded"
        lines += _listed("missing", f"{_tensors(missing)} that its settings ask for; {without}", missing)
    if dropped:
        lines += _listed("left out", f"{_tensors(dropped)} that no part of our encoder reads", dropped)
    return Report(config, tokenizer, lines, missing, new_heads, dropped)


def _has_encoder(plan: Plan) -> bool:
    """Whether all that is missing belongs to heads."""
    rows = [row for row in plan.rows if row.part in ("embeddings", *LAYERS)]
    return not {row.theirs.format(**place) for row in rows for place in plan.places} & set(plan.missing)


def _family(config: EncoderConfig, origin: Origin | None) -> str:
    """Of an encoder that was trained here, which may be of none."""
    try:
        return f"{hf.family_of(config, origin).model_type}, trained here"
    except BertJaxError as error:
        return f"none; {str(error).partition(' (')[0]}"


def _weights(tensors: Tensors) -> str:
    kinds = {dtype for dtype in tensors.dtypes.values() if dtype in DTYPES.values()}
    size = sum(tensors.dtypes[name].itemsize * math.prod(shape) for name, shape in tensors.shapes.items())
    names = " and ".join(name for name, dtype in DTYPES.items() if dtype in kinds)
    return f"{names}, {_tensors(tensors.shapes)}, " + (f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB")


def _tensors(names) -> str:
    return f"{len(names):,} tensor{'s' * (len(names) != 1)}"


def _listed(what: str, sentence: str, names: list[str]) -> list[tuple[str, str]]:
    return [(what, f"{sentence}:"), *(("", f"  {name}") for name in names)]


def _encoder(config: EncoderConfig) -> list[tuple[str, str]]:
    sharing = {"none": "", "all": ", all sharing their parameters"}.get(config.share, f", sharing {config.share}")
    groups = f" in {config.groups} groups of {config.inner_layers}" if (config.groups, config.inner_layers) != (1, 1) else ""
    factorised = f", embeddings {config.embedding_width}" if config.embedding_width != config.hidden_width else ""
    offset = f", the first in row {config.position_offset} of the table" if config.position_offset else ""
    lines = [
        ("parameters", f"{api.count_parameters(config):,}"),
        ("layers", f"{config.depth}{sharing}{groups}"),
        ("width", f"{config.hidden_width}{factorised}, feed-forward {config.ffn_width}, {config.heads} attention heads"),
        ("positions", f"{config.max_length}{offset}" if config.positions == "absolute" else "relative, none too far"),
        ("segments", str(config.segments or "none")),
        ("activation", config.activation),
        ("heads", ", ".join(config.with_heads) or "none, the encoder alone"),
    ]
    if config.labels:
        shown = ", ".join(config.labels[:6]) + (", ..." if len(config.labels) > 6 else "")
        lines.append(("labels", f"{len(config.labels)}: {shown}"))
    return lines


def _tokenizer(tokenizer: Tokenizer | None, config: EncoderConfig) -> list[tuple[str, str]]:
    padded = f", padded to {config.padded_vocab_size:,}" if config.padded_vocab_size != config.vocab_size else ""
    vocabulary = ("vocabulary", f"{config.vocab_size:,} rows of the token table{padded}")
    if tokenizer is None:
        return [vocabulary, ("tokenizer", "none beside the weights")]
    case = "lower-cases" if tokenizer.lowercase else "keeps case"
    beyond = "" if tokenizer.vocab_size <= config.vocab_size else ", MORE than the token table has rows: not its tokenizer"
    return [
        vocabulary,
        ("tokenizer", f"{tokenizer.kind}, {tokenizer.vocab_size:,} pieces, {case}{beyond}"),
        ("hash", tokenizer.hash),
    ]


def _sentence(settings: SentenceSettings | None) -> list[tuple[str, str]]:
    if settings is None:
        return []
    normal = ", normalised" if settings.normalize else ""
    lines = [("sentences", f"{' + '.join(settings.pooling)} pooling{normal}, at most {settings.max_length} tokens")]
    for prompt in settings.prompts:
        default = " (default)" if prompt.name == settings.default_prompt else ""
        lines.append(("prompt", f"{prompt.name}{default}: {prompt.text!r}"))
    return lines


def _steps(place: Place) -> str:
    """Those of a work directory.

    Raises:
      BertJaxError: one was asked for that is not there.
    """
    steps, best = saved_steps(place.path / CHECKPOINTS), saved_steps(place.path / BEST) if best_metric(place) else []
    have = ", ".join(map(str, steps)) or "none"
    if place.step is not None and place.step not in steps:
        raise BertJaxError(f"{place.path / CHECKPOINTS}: no checkpoint at step {place.step} (there: {have})")
    if not steps and not best:
        return "none yet: it cannot be loaded"
    if best:
        return f"steps {have}; the best by {best_metric(place)}, of step {best[-1]}, is read"
    return f"steps {have}; {steps[-1] if place.step is None else place.step} is read"
