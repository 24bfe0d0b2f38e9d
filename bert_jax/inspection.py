"""What a checkpoint is and what loading it would do, from its settings and headers: no weights are read."""

import math
import os
from typing import NamedTuple

from bert_jax.checkpoint import Checkpoints
from bert_jax.convert import hf
from bert_jax.convert.reading import NOTES, noted
from bert_jax.embedding.settings import SentenceSettings
from bert_jax.model import CHECKPOINTS, Place, described, find, load_tokenizer, plan_of
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
      lines: (what, value) in the order of printing. missing, dropped: names of tensors that loading would begin anew
        (``new_heads``), and of those that it would leave out.
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


def inspect(path: str | os.PathLike) -> Report:
    """Looks at anything that :func:`bert_jax.load` takes.

    Raises:
      BertJaxError: as ``load`` does, but for damage inside the weights and for missing tensors, which are listed.
    """
    place = find(path)
    missing, new_heads, dropped, source = [], [], [], [("source", f"{_SOURCES[place.kind]} {place.path}")]
    if place.kind in ("workdir", "bert_jax"):
        config, sentence, origin = described(place.path)
        if place.kind == "workdir":
            steps = _steps(place)
            source.append(("checkpoints", f"steps {', '.join(map(str, steps))}" if steps else "none yet"))
        source.append(("family", f"{origin.family}, converted" if origin else hf.family_of(config, None).model_type))
    else:
        plan = plan_of(place)
        sentence, origin = place.sentence, plan.origin
        config = noted(plan.config, origin.settings.get(NOTES, {}), plan.tensors.path)
        missing, new_heads, dropped = plan.missing, plan.new_heads, plan.dropped
        classes = ", ".join(origin.settings.get("architectures") or ())
        source.append(("family", origin.family + (f" ({classes})" if classes else "")))
        size = sum(plan.tensors.dtypes[name].itemsize * math.prod(shape) for name, shape in plan.tensors.shapes.items())
        source.append(("weights", f"{origin.dtype}, {len(plan.tensors.shapes)} tensors, {size / 1e6:,.1f} MB"))
    tokenizer = load_tokenizer(place, None)
    lines = source + _encoder(config) + _tokenizer(tokenizer, config) + _sentence(sentence)
    for what, names in (("missing", missing), ("left out", dropped)):
        if names:
            lines.append((what, ", ".join(names)))
    if missing:
        parts = "new heads with --allow-missing" if new_heads else "needed: this checkpoint cannot be loaded"
        lines.append(("", f"{', '.join(new_heads)}: {parts}" if new_heads else parts))
    return Report(config, tokenizer, lines, missing, new_heads, dropped)


def _encoder(config: EncoderConfig) -> list[tuple[str, str]]:
    sharing = {"none": "", "all": ", all layers share"}.get(config.share, f", layers share {config.share}")
    groups = f" in {config.groups} groups of {config.inner_layers}" if (config.groups, config.inner_layers) != (1, 1) else ""
    factorised = f", embeddings {config.embedding_width}" if config.embedding_width != config.hidden_width else ""
    lines = [
        ("parameters", f"{api.count_parameters(config):,}"),
        ("layers", f"{config.depth}{sharing}{groups}"),
        ("width", f"{config.hidden_width}{factorised}, feed-forward {config.ffn_width}, {config.heads} attention heads"),
        ("positions", f"{config.max_length}" + (f", offset {config.position_offset}" if config.position_offset else "")),
        ("segments", str(config.segments)),
        ("activation", config.activation),
        ("heads", ", ".join(config.with_heads) or "none"),
    ]
    if config.labels:
        shown = ", ".join(config.labels[:6]) + (", ..." if len(config.labels) > 6 else "")
        lines.append(("labels", f"{len(config.labels)}: {shown}"))
    return lines


def _tokenizer(tokenizer: Tokenizer | None, config: EncoderConfig) -> list[tuple[str, str]]:
    if tokenizer is None:
        return [("vocabulary", f"{config.vocab_size:,} rows"), ("tokenizer", "none")]
    case = "lower-cases" if tokenizer.lowercase else "keeps case"
    beyond = "" if tokenizer.vocab_size <= config.vocab_size else ", MORE than the token table has: not its tokenizer"
    return [
        ("vocabulary", f"{config.vocab_size:,} rows"),
        ("tokenizer", f"{tokenizer.kind}, {tokenizer.vocab_size:,} pieces, {case}{beyond}"),
        ("hash", tokenizer.hash),
    ]


def _sentence(settings: SentenceSettings | None) -> list[tuple[str, str]]:
    if settings is None:
        return []
    prompts = "".join(f", prompt {prompt.name} {prompt.text!r}" for prompt in settings.prompts)
    normal = ", normalised" if settings.normalize else ""
    return [("sentences", f"{' + '.join(settings.pooling)} pooling{normal}, at most {settings.max_length} tokens{prompts}")]


def _steps(place: Place) -> list[int]:
    if not (place.path / CHECKPOINTS).is_dir():
        return []
    checkpoints = Checkpoints(place.path / CHECKPOINTS)
    try:
        return checkpoints.steps()
    finally:
        checkpoints.close()


