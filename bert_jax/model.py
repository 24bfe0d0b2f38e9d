"""A model ready for use, loaded from wherever it lies and saved in the form that the next user wants.

:func:`load` takes a work directory, a Hugging Face or sentence-transformers directory, a TensorFlow checkpoint, or the id of a
model on the Hugging Face hub, and tells them apart by the files that are there. :func:`save` writes any of the first three
forms. :func:`bert_jax.inspection.inspect` says beforehand what loading would do.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from bert_jax import tokenizers
from bert_jax.checkpoint import Checkpoints, Restored
from bert_jax.config import from_json, to_json
from bert_jax.convert import hf, hub, onnx, sentence_transformers, tensorflow
from bert_jax.convert.bundle import find_prefix
from bert_jax.convert.reading import PREDICTOR, Origin, Plan, flatten, nest, read_finite, read_imported, tree_shapes
from bert_jax.convert.tensors import DTYPES, Entry, Safetensors, dtype_name, write_safetensors
from bert_jax.embedding.settings import SentenceSettings
from bert_jax.errors import BertJaxError
from bert_jax.files import read_json, write_json
from bert_jax.models import api, generator
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

Format = Literal["bert_jax", "hf", "sentence-transformers", "onnx"]

EXPERIMENT, CHECKPOINTS, BEST, TOKENIZER = "experiment.json", "checkpoints", "best", "tokenizer"  # of a run's work directory
PLAN, EXPORTED = "finetune.json", "model"  # of a work directory of bert-jax finetune: what was asked for, what came out
ANSWERS = "predictor.json"  # of one of its seeds: Model.predictor
MODEL, PARAMS = "model.json", "params.safetensors"  # instead of the first two: of a model that was converted


class Model(NamedTuple):
    """An encoder with what belongs to it.

    Attributes:
      params: float32; the head of a regression gives the value itself. config: the encoder. tokenizer: None where none was
        found.
      sentence: how it makes sentence embeddings, where that was said.
      origin: family, settings and dtype of the checkpoint that it came from; None for models that were trained here, but for
        the generator of an ELECTRA, which is one whatever its sizes.
      predictor: JSON of what its head answers new texts with (lengths, thresholds), where that was said.
    """

    params: api.Params
    config: EncoderConfig
    tokenizer: Tokenizer | None
    sentence: SentenceSettings | None = None
    origin: Origin | None = None
    predictor: Any = None

    def __repr__(self) -> str:
        """A line: a notebook shows what a cell ends with, and would show every parameter."""
        config, count = self.config, sum(leaf.size for leaf in jax.tree.leaves(self.params))
        heads = ", ".join(config.with_heads) or "none"
        return (f"{type(self).__name__}({config.layers} layers of width {config.hidden_width}, {count:,} parameters, "
                f"heads: {heads}, {self.tokenizer!r})")


class Place(NamedTuple):
    """A checkpoint that was found: its kind, the path of its encoder, its sentence settings, and what was asked for of it."""

    kind: Literal["workdir", "bert_jax", "hf", "tensorflow"]
    path: Path
    sentence: SentenceSettings | None = None
    step: int | None = None
    part: str | None = None


def load(path: str | os.PathLike, *, tokenizer: str | os.PathLike | None = None, allow_missing: bool = False) -> Model:
    """Loads a checkpoint.

    Args:
      path: a work directory (``runs/x``, ``runs/x@step``), one of ``bert-jax finetune`` (its ``model``), a directory that
        :func:`save` wrote, one of Hugging Face or sentence-transformers, a TensorFlow checkpoint (its folder, or the prefix of
        its files), or a hub id (``org/name``). ``#generator`` after a work directory or a TensorFlow checkpoint reads that of
        an ELECTRA, which else gives its discriminator. Of a run with ``train.best`` the parameters are those of the best
        evaluation, unless a step is named. Parameters that serve single objectives of a run are left out.
      tokenizer: directory or file of the tokenizer, where it does not lie beside the weights.
      allow_missing: heads that the checkpoint promises and lacks are new (seed 0) instead of an error.

    Raises:
      BertJaxError: nothing of the kind, damaged, of a family or with a setting that is not read, incomplete, or with a
        tokenizer whose ids the token table does not hold.
    """
    place = find(path)
    if place.kind == "workdir":
        model = _load_workdir(place, tokenizer)
    elif place.kind == "bert_jax":
        model = _load_own(place, tokenizer)
    else:
        found = load_tokenizer(place, tokenizer)
        imported = read_imported(plan_of(place), allow_missing=allow_missing)
        said = imported.origin.settings.get(PREDICTOR)
        model = Model(imported.params, imported.config, found, place.sentence, imported.origin, said)
    if model.tokenizer is not None and model.tokenizer.vocab_size > model.config.vocab_size:
        raise BertJaxError(
            f"{path}: its tokenizer has {model.tokenizer.vocab_size} pieces, its token table {model.config.vocab_size} rows: "
            "not its tokenizer: convert --tokenizer (load(..., tokenizer=...)) takes the right one"
        )
    return model


def save(model: Model, directory: str | os.PathLike, *, format: Format = "hf", dtype: str | None = None) -> None:
    """Writes a model; the directory appears whole or not at all.

    Args:
      directory: absent or empty.
      format: ``hf`` for transformers; ``sentence-transformers`` adds its modules to that (mean pooling, where the model says
        nothing else); ``bert_jax`` is our own: the parameters by their paths in the tree, the configuration as it is;
        ``onnx`` adds ``onnx/model.onnx`` to ``hf``, and the modules where the model says how it makes embeddings.
      dtype: of the weights: float32, bfloat16 (bf16) or float16; None: as the model came, but float32 for ``bert_jax`` and
        always for ``onnx``.

    Raises:
      BertJaxError: no such format or dtype; and see :func:`bert_jax.convert.hf.export` and :func:`bert_jax.convert.onnx.write`.
    """
    if format not in get_args(Format):
        raise BertJaxError(f"unknown format {format!r}: choose {', '.join(get_args(Format)[:-1])} or {get_args(Format)[-1]}")
    dtype = None if dtype is None else dtype_name(dtype)
    if format == "onnx" and dtype not in (None, "float32"):
        raise BertJaxError(f"onnx is written in float32, not {dtype}: leave the dtype out")
    if format == "hf" and model.sentence is not None:
        logger.warning("pooling and prompts of its sentence embeddings are left out: convert --format "
                       "sentence-transformers keeps them")
    if format == "onnx" and model.sentence is not None and model.tokenizer is None:
        logger.warning("pooling and prompts of its sentence embeddings are left out: there is no tokenizer beside them "
                       "(convert --tokenizer names one)")
    with hf.new_directory(directory) as partial:
        if format == "bert_jax":
            _save_own(model, partial, dtype or "float32")
            return
        if format == "onnx":
            onnx.write(model.params, model.config, model.tokenizer, partial, origin=model.origin)
        else:
            hf.write(model.params, model.config, model.tokenizer, partial, origin=model.origin, dtype=dtype)
        if model.predictor is not None and (model.origin is None or model.origin.heads == model.config.with_heads):
            write_json(partial / hf.CONFIG, read_json(partial / hf.CONFIG) | {PREDICTOR: model.predictor})
        if format == "sentence-transformers" or (format == "onnx" and model.sentence and model.tokenizer):
            if model.tokenizer is None:
                raise BertJaxError("sentence-transformers needs a tokenizer, and there is none: convert --tokenizer names one")
            sentence = model.sentence
            if sentence is None:
                sentence = mean_over_tokens(model)
                logger.warning("how it makes sentence embeddings was never said: written as the mean over tokens")
            sentence_transformers.write(partial, sentence, hidden_width=model.config.hidden_width)


def mean_over_tokens(model: Model) -> SentenceSettings:
    """How sentence-transformers would embed with a plain encoder: the mean, of as many tokens as encoder and tokenizer take."""
    stated = model.tokenizer.settings.get("model_max_length") if model.tokenizer else None
    positions = sentence_transformers.ANY_LENGTH if model.config.positions == "relative" else model.config.max_length
    return SentenceSettings(max_length=min(stated, positions) if type(stated) is int and stated > 0 else positions)


def find(path: str | os.PathLike) -> Place:
    """What a path is, seen from the files that are there; a hub id is downloaded first.

    Raises:
      BertJaxError: nothing that is known.
    """
    name, sharp, part = str(path).rpartition("#")
    run, _, _ = name.rpartition("@")
    if sharp and (Path(name).is_dir() or (Path(run) / EXPERIMENT).is_file() or Path(f"{name}.index").is_file()):
        return find(name)._replace(part=part)
    name, at, step = str(path).rpartition("@")
    if at and (Path(name) / EXPERIMENT).is_file():
        if not step.isdecimal():
            raise BertJaxError(f"{path}: after @ comes a step number")
        return Place("workdir", Path(name), step=int(step))
    if at and (Path(name) / PLAN).is_file():
        raise BertJaxError(f"{path}: a fine-tuning has seeds, and each of them steps: name one, as in {name}/seed-0@{step}")
    folder = Path(path)
    if (folder / PLAN).is_file():
        if not (folder / EXPORTED).is_dir():
            raise BertJaxError(f"{folder}: its fine-tuning is not finished: the same bert-jax finetune continues it")
        return find(folder / EXPORTED)
    if (folder / EXPERIMENT).is_file():
        return Place("workdir", folder)
    if (folder / MODEL).is_file() and ((folder / PARAMS).is_file() or not (folder / hf.CONFIG).is_file()):
        return Place("bert_jax", folder)  # TensorFlow.js has files of the former name, too
    if folder.is_dir():
        sentence = sentence_transformers.read(folder)
        encoder, settings = sentence if sentence else (folder, None)
        if not hf.has_weights(encoder) and find_prefix(encoder):
            return Place("tensorflow", encoder, settings)
        if (encoder / hf.CONFIG).is_file():
            return Place("hf", encoder, settings)
        raise BertJaxError(
            f"{folder} is no checkpoint: it has no {EXPERIMENT} (a work directory), no {PLAN} (of fine-tuning), no {hf.CONFIG} "
            "(Hugging Face) and no *.index (TensorFlow)"
        )
    if Path(f"{folder}.index").is_file() or folder.suffix == ".index":
        return Place("tensorflow", folder)
    if folder.is_file():
        raise BertJaxError(f"{path} is a file: name its folder, {folder.parent}")
    return find(hub.download(str(path)))


def plan_of(place: Place) -> Plan:
    """What reading a foreign checkpoint will do."""
    if place.kind == "tensorflow":
        return tensorflow.plan(place.path, place.part)
    if place.part is not None:
        raise BertJaxError(f"{place.path}#{place.part}: only a run and a TensorFlow checkpoint have parts to choose from")
    return hf.plan(place.path, of_sentences=place.sentence is not None)


def load_tokenizer(place: Place, other: str | os.PathLike | None) -> Tokenizer | None:
    """The tokenizer at ``other``, else the one beside a checkpoint's weights, else None with one warning line."""
    if other is not None:
        return tokenizers.load(other)
    folder = place.path if place.path.is_dir() else place.path.parent
    if place.kind in ("workdir", "bert_jax"):
        folder = folder / TOKENIZER
    if not tokenizers.is_in(folder):
        logger.warning("%s: no tokenizer lies beside the weights; convert --tokenizer (load(..., tokenizer=...)) names one",
                       folder)
        return None
    return tokenizers.load(folder)


def described(place: Place) -> tuple[EncoderConfig, SentenceSettings | None, Origin | None]:
    """What the JSON file of a work directory or of our own format says of the model.

    Raises:
      BertJaxError: the file is damaged, or has no such part.
    """
    if place.kind == "workdir":
        path = place.path / EXPERIMENT
        task = read_json(path).get("task")
        if not isinstance(task, Mapping) or "encoder" not in task:
            raise BertJaxError(f"{path} has no task.encoder: it was not written by bert-jax")
        encoder = from_json(EncoderConfig, task["encoder"], f"{path}: task.encoder")
        widths = _generator_widths(task)
        if place.part == "generator" and widths:
            config = generator.config_of(encoder, widths[0])
            return config, None, Origin("electra", {}, config.with_heads, "float32")
        if place.part not in (None, "discriminator") or (place.part and not widths):
            has = "discriminator, generator is there" if widths else "it trained no generator"
            raise BertJaxError(f"{place.path} has no part {place.part!r}: {has}")
        return encoder, None, None
    if place.part is not None:
        raise BertJaxError(f"{place.path}#{place.part}: only a run and a TensorFlow checkpoint have parts to choose from")
    path = place.path / MODEL
    content = read_json(path)
    sentence, origin = content.get("sentence"), content.get("origin")
    return (
        from_json(EncoderConfig, content.get("encoder"), f"{path}: encoder"),
        from_json(SentenceSettings, sentence, f"{path}: sentence") if sentence else None,
        _origin(origin, path) if origin else None,
    )


def _generator_widths(task: Mapping[str, Any]) -> list[float]:
    """Of the objective that has a generator (:class:`bert_jax.objectives.replaced_tokens.ReplacedTokens`), if it is there."""
    objectives = [one for turn in (task, *task.get("turns", ())) for one in turn.get("objectives", ())]
    return [one["generator_width"] for one in objectives if one.get("kind") == "ReplacedTokens"]


def _origin(data: Any, path: Path) -> Origin:
    try:
        return Origin(**data)._replace(heads=tuple(data["heads"]))
    except (TypeError, KeyError):
        raise BertJaxError(f"{path}: origin is damaged: it must hold {', '.join(Origin._fields)}") from None


def load_run(path: str | os.PathLike, shapes: api.Params) -> Model:
    """A work directory's model with all that ``shapes`` (jax.ShapeDtypeStruct) names of what it trained, the parameters that
    serve single objectives among them.

    Raises:
      BertJaxError: it is no work directory, or what was saved does not fit ``shapes``.
    """
    place = find(path)
    if place.kind != "workdir" or place.part:
        raise BertJaxError(f"{path} is no work directory of pretrain, nor one of its steps")
    config, _, _ = described(place)
    return _with_tokenizer(place, None, _restored(place, shapes), config)


def _load_workdir(place: Place, tokenizer: str | os.PathLike | None) -> Model:
    """What a run has trained, see :func:`_restored`, on one device."""
    config, _, origin = described(place)
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    if place.part == "generator":
        encoder, _, _ = described(place._replace(part=None))
        tables = jax.eval_shape(lambda: api.init(encoder, jax.random.key(0)))["embeddings"]
        restored = _restored(place, {"embeddings": tables, generator.PART: generator.own(shapes)})
        found = restored.items["params"]
        restored.items["params"] = generator.merged(found["embeddings"], found[generator.PART])
    else:
        restored = _restored(place, shapes)
        task = read_json(place.path / EXPERIMENT)["task"]
        if task.get("kind") == "Regression":  # it trains a head whose values have mean 0 and deviation 1
            head = rescaled(restored.items["params"]["classifier"], task.get("offset", 0.0), task.get("scale", 1.0))
            restored.items["params"]["classifier"] = head
    said = place.path / ANSWERS
    predictor = read_json(said) if said.is_file() and place.part is None else None
    return _with_tokenizer(place, tokenizer, restored, config)._replace(origin=origin, predictor=predictor)


def rescaled(classifier: api.Params, offset: float, scale: float) -> api.Params:
    """The head that gives ``offset + scale * logit`` for each logit of ``classifier``."""
    dense = classifier["dense"]
    return {"dense": {"kernel": dense["kernel"] * scale, "bias": dense["bias"] * scale + offset}}


def _with_tokenizer(place: Place, tokenizer: str | os.PathLike | None, restored: Restored, config: EncoderConfig) -> Model:
    found, trained_with = load_tokenizer(place, tokenizer), restored.metadata["identity"].get("tokenizer")
    if found is not None and tokenizer is None and found.hash != trained_with:
        raise BertJaxError(f"{place.path}: the checkpoint was trained with tokenizer {trained_with}, there lies {found.hash}")
    return Model(restored.items["params"], config, found)


def _restored(place: Place, shapes: api.Params) -> Restored:
    """The parts of a work directory's parameters that ``shapes`` names: of the step asked for, else of the best evaluation
    where there is one (:func:`best_metric`), else of the newest checkpoint that is whole."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    metric = best_metric(place)
    for folder in (BEST, CHECKPOINTS) if metric else (CHECKPOINTS,):
        if not (place.path / folder).is_dir():
            continue
        checkpoints = Checkpoints(place.path / folder)
        restored = checkpoints.restore({"params": abstract}, place.step, partial=True)
        checkpoints.close()
        if restored is not None:
            if metric and folder == CHECKPOINTS:
                logger.warning("%s was never evaluated: these are its last parameters, not the best by %s", place.path, metric)
            return restored
    raise BertJaxError(f"{place.path}: no checkpoint has been saved yet")


def best_metric(place: Place) -> str | None:
    """``train.best`` of a work directory, where parameters are chosen by it: no step is asked for."""
    train = read_json(place.path / EXPERIMENT).get("train")
    return train.get("best") if place.step is None and isinstance(train, Mapping) else None


def _load_own(place: Place, tokenizer: str | os.PathLike | None) -> Model:
    config, sentence, origin = described(place)
    tensors, shapes = Safetensors(place.path / PARAMS, [place.path / PARAMS]), tree_shapes(config)
    if tensors.shapes != shapes:
        wrong = min(name for name in shapes.keys() | tensors.shapes.keys() if shapes.get(name) != tensors.shapes.get(name))
        found, wanted = (list(s[wrong]) if wrong in s else "absent" for s in (tensors.shapes, shapes))
        raise BertJaxError(f"{tensors.path}: {wrong} is {found}, its {MODEL} says {wanted}")
    params = nest({name: read_finite(tensors, name).astype(np.float32, copy=False) for name in shapes})
    said = read_json(place.path / MODEL).get(PREDICTOR)
    return Model(params, config, load_tokenizer(place, tokenizer), sentence, origin, said)


def _save_own(model: Model, directory: Path, dtype: str) -> None:
    content: dict[str, Any] = {
        "encoder": to_json(model.config),
        "sentence": to_json(model.sentence),
        "origin": model.origin._asdict() if model.origin else None,
        PREDICTOR: model.predictor,
    }
    write_json(directory / MODEL, content)
    entries = [Entry(name, a.shape, lambda a=a: np.asarray(a)) for name, a in flatten(model.params).items()]
    write_safetensors(directory / PARAMS, entries, DTYPES[dtype])
    if model.tokenizer is not None:
        model.tokenizer.save(directory / TOKENIZER)
