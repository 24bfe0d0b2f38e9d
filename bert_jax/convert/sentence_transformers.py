"""The files that sentence-transformers keeps beside a Hugging Face encoder: modules, pooling, maximum length, prompts.

Folders are read as its versions 2 to 6 write them, and written in the form that all of these versions load.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from bert_jax.config import from_json
from bert_jax.embedding.settings import POOLINGS, SentenceSettings
from bert_jax.errors import BertJaxError
from bert_jax.files import read_json

logger = logging.getLogger("bert_jax")

MODULES, MODEL, CONFIG = "modules.json", "config_sentence_transformers.json", "config.json"
TRANSFORMER = "sentence_bert_config.json"

_OTHER_NAMES = tuple(  # of TRANSFORMER, from the days of one module class for each model type
    f"sentence_{kind}_config.json" for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_PIPELINES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_FLAGS = {  # of a Pooling module, before it got a pooling_mode; POOLINGS has the order in which results are concatenated
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_NEW_IN_2_3 = ("weightedmean", "lasttoken")  # older versions do not even accept these flags
_TRANSFORMER_ONLY = {  # keys of TRANSFORMER whose other values make another computation
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_NOT_APPLIED = (
    "model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs",
    "processing_kwargs", "query_length", "document_length", "query_expansion",
)  # fmt: skip
ANY_LENGTH = int(1e30)  # what transformers writes where a tokenizer knows no longest text
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")  # pad_token_id + 1 rows serve no token


def read(directory: str | os.PathLike) -> tuple[Path, SentenceSettings] | None:
    """The folder of the encoder (Hugging Face files) and the settings of a sentence-transformers directory.

    A maximum length that the module leaves open is the smaller of the tokenizer's and the encoder's; one that exceeds
    the encoder's positions is lowered, with one warning line. Arguments for transformers' own loaders are not applied;
    one warning line names them. Versions and the model card are not read.

    Returns:
      None where ``directory`` holds no modules.json: it is not one of sentence-transformers; or, with one warning line, where
      it is another kind of model of theirs (CrossEncoder, SparseEncoder) that has its config.json there too.

    Raises:
      BertJaxError: a module other than Transformer, Pooling and Normalize (Dense, CNN, Router ...) or another order of
        them, a module outside the directory, a setting that makes a different computation, a file that is absent where
        it is needed, or damaged.
    """
    directory = Path(directory)
    if not (directory / MODULES).is_file():
        return None
    model = read_json(directory / MODEL) if (directory / MODEL).is_file() else {}
    kind = model.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer" and (directory / CONFIG).is_file():
        logger.warning("%s is a %s of sentence-transformers: read as the model that its %s describes, without what its modules "
                       "add", directory, kind, CONFIG)
        return None
    folders = _module_folders(directory)
    encoder = folders["Transformer"]
    transformer = _transformer(encoder)
    _expect(directory / MODEL, model, {"model_type": "SentenceTransformer"})
    prompts = model.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise BertJaxError(f"{directory / MODEL}: prompts is {prompts!r}: an object of names and texts is needed")
    data = {
        **_pooling(folders["Pooling"] / CONFIG),
        "normalize": "Normalize" in folders,
        "max_length": _max_length(encoder, transformer.get("max_seq_length")),
        "prompts": [{"name": name, "text": "" if text is None else text} for name, text in prompts.items()],
        "default_prompt": model.get("default_prompt_name"),
        "lowercase": transformer.get("do_lower_case") or False,
        "similarity": model.get("similarity_fn_name") or "cosine",
    }
    if "Normalize" in folders and (folders["Normalize"] / CONFIG).is_file():
        path = folders["Normalize"] / CONFIG
        wanted = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
        _expect(path, read_json(path), wanted)
    try:
        return encoder, from_json(SentenceSettings, data, "settings")
    except BertJaxError as error:
        raise BertJaxError(f"{directory}: {error}") from error


def write(directory: str | os.PathLike, settings: SentenceSettings, *, hidden_width: int) -> None:
    """Makes the Hugging Face directory of an encoder (D = ``hidden_width``) one that sentence-transformers loads.

    Adds modules.json (last), 1_Pooling/, 2_Normalize/ if vectors are normalised, and the two files of settings. Versions
    from 2.2 on load it; ``weightedmean``, ``lasttoken`` and ``include_prompt=False`` need those that know them (2.3, 2.4),
    and several poolings in another order than that of POOLINGS need one newer than 5.1. Prompts are ignored before 2.4. A
    maximum length above the positions of the encoder is lowered, with one warning line.

    Raises:
      BertJaxError: no encoder in the directory, one of these files already there, or a file that cannot be written; what
        was written by then is removed.
    """
    directory = Path(directory)
    modules = {"Transformer": "", "Pooling": "1_Pooling"} | ({"Normalize": "2_Normalize"} if settings.normalize else {})
    transformer = {"max_seq_length": _max_length(directory, settings.max_length), "do_lower_case": settings.lowercase}
    model = {
        "prompts": {prompt.name: prompt.text for prompt in settings.prompts},
        "default_prompt_name": settings.default_prompt,
        "similarity_fn_name": settings.similarity,
    }
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules.items())
    ]
    pooling = Path(modules["Pooling"], CONFIG)
    contents = {pooling: _pooling_config(settings, hidden_width), TRANSFORMER: transformer, MODEL: model, MODULES: listed}
    folders, files = list(filter(None, modules.values())), list(contents)
    if present := [name for name in (*folders, *files) if (directory / name).exists()]:
        raise BertJaxError(f"{directory / present[0]} exists: export to another directory")
    try:
        for folder in folders:
            (directory / folder).mkdir()
        for name, content in contents.items():
            (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        for name in files:
            (directory / name).unlink(missing_ok=True)
        for folder in folders:
            if (directory / folder).is_dir():
                (directory / folder).rmdir()
        raise BertJaxError(f"cannot write the files of sentence-transformers to {directory}: {error}") from error


def _module_folders(directory: Path) -> dict[str, Path]:
    """The folder of each module by its class, in the order of the pipeline."""
    path = directory / MODULES
    modules = read_json(path, list)
    if not all(isinstance(module, dict) for module in modules):
        raise BertJaxError(f"{path}: a list of modules is needed")
    folders, root = [], directory.resolve()
    for i, module in enumerate(modules):
        kind, place = module.get("type"), module.get("path")
        if not isinstance(kind, str) or not isinstance(place, str):
            raise BertJaxError(f"{path}: module {i} needs a type and a path, both strings")
        package, _, name = kind.rpartition(".")
        known = name in _PIPELINES[-1] and package.partition(".")[0] == "sentence_transformers"
        if not known or module.get("kwargs"):
            what = f"{kind} with arguments" if known else kind
            raise BertJaxError(f"{path}: module {i} is {what}: only Transformer, Pooling and Normalize can be converted")
        if "\0" in place or not (root / place).resolve().is_relative_to(root):
            raise BertJaxError(f"{path}: the path {place!r} of module {i} leads out of the directory")
        folders.append((name, directory / place))
    kinds = [name for name, _ in folders]
    if kinds not in _PIPELINES:
        raise BertJaxError(
            f"{path}: the modules are {', '.join(kinds) or 'none'}: Transformer, Pooling and perhaps Normalize are needed, "
            "in this order"
        )
    return dict(folders)


def _transformer(encoder: Path) -> dict[str, Any]:
    path = next((encoder / name for name in (TRANSFORMER, *_OTHER_NAMES) if (encoder / name).is_file()), None)
    if path is None:
        return {}
    config = read_json(path)
    _expect(path, config, _TRANSFORMER_ONLY)
    if arguments := [name for name in _NOT_APPLIED if config.get(name)]:
        logger.warning("%s: not applied: %s", path, ", ".join(arguments))
    return config


def _pooling(path: Path) -> dict[str, Any]:
    config = read_json(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for mode in POOLINGS if config.get(_FLAGS[mode])] or ["mean"]  # its default
    elif isinstance(modes, str):
        modes = [modes]
    return {"pooling": modes, "include_prompt": config.get("include_prompt", True)}


def _pooling_config(settings: SentenceSettings, hidden_width: int) -> dict[str, Any]:
    if list(settings.pooling) != [mode for mode in POOLINGS if mode in settings.pooling]:  # flags have no order
        return {
            "embedding_dimension": hidden_width,
            "pooling_mode": list(settings.pooling),
            "include_prompt": settings.include_prompt,
        }
    modes = [mode for mode in POOLINGS if mode not in _NEW_IN_2_3 or mode in settings.pooling]
    flags = {_FLAGS[mode]: mode in settings.pooling for mode in modes}
    excluded = {} if settings.include_prompt else {"include_prompt": False}
    return {"word_embedding_dimension": hidden_width} | flags | excluded


def _max_length(encoder: Path, wanted: int | None) -> int:
    """`wanted`, or what the tokenizer allows if that is None, but not more than the positions of the encoder (XLNet, which has
    no table of them, takes any number)."""
    config = read_json(encoder / CONFIG)
    positions = config.get("max_position_embeddings", ANY_LENGTH if config.get("model_type") == "xlnet" else None)
    if type(positions) is not int:
        raise BertJaxError(f"{encoder / CONFIG}: max_position_embeddings is {positions!r}: a number is needed")
    if config.get("model_type") in _OFFSET_POSITIONS:
        padding = config.get("pad_token_id")
        positions -= 1 + (padding if type(padding) is int else 1)
    tokenizer = encoder / "tokenizer_config.json"
    if wanted is None:
        length = read_json(tokenizer).get("model_max_length") if tokenizer.is_file() else None
        return min(length, positions) if type(length) is int else positions
    if type(wanted) is not int:
        raise BertJaxError(f"{encoder / TRANSFORMER}: max_seq_length is {wanted!r}: a number or null is needed")
    if wanted > positions:
        logger.warning("%s: the encoder has %d positions, so this is the maximum length, not %d", encoder, positions, wanted)
    return min(wanted, positions)


def _expect(path: Path, config: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if config.get(name) not in (None, value):
            raise BertJaxError(f"{path}: {name} is {config[name]!r}: only {value!r} can be converted")
