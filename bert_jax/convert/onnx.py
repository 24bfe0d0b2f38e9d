"""ONNX for onnxruntime, Optimum, sentence-transformers and transformers.js: ``onnx/model.onnx`` in a Hugging Face directory.

The graph is that of PyTorch's exporter on the model which transformers opens from the very directory, and it is run in
onnxruntime against our own before it counts. (jax2onnx, which traces ours, is as exact; but its releases since 0.13.1 cannot
be installed beside the Orbax that we need, and older ones do not know today's jax.)
"""

import dataclasses
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from bert_jax.convert import hf
from bert_jax.convert.reading import Origin
from bert_jax.convert.settings import family_of, plain_form
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

FOLDER, FILE, EXTERNAL = "onnx", "model.onnx", "model.onnx_data"  # where those who open them look
OPSET = 18  # what the exporter writes of itself, and every runtime of the last years reads
LARGEST_DIFFERENCE = 1e-4  # between our outputs and the file's, in units of the largest value where that is above 1

_FILE_BYTES = 2_000_000_000  # a protobuf ends at 2 GiB: the weights of larger models lie in EXTERNAL beside it
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def write(
    params: Mapping[str, Any], config: EncoderConfig, tokenizer: Tokenizer | None, directory: Path, *, origin: Origin | None
) -> float:
    """Writes a Hugging Face directory in float32 with the graph in it, into a folder that exists.

    Inputs are int64 [batch, length], both free: ``input_ids``, ``attention_mask``, and ``token_type_ids`` where the segment
    table has more than one row. Outputs are float32: ``last_hidden_state`` [batch, length, D], ``pooler_output`` [batch, D]
    of a pooler without a head on it, and the logits by the names of the class in transformers (``logits``, ``start_logits``
    ...). A multiple-choice head is left out with one warning line: its class takes another kind of batch.

    Returns:
      The largest difference to :func:`bert_jax.models.api.apply` that onnxruntime showed, as LARGEST_DIFFERENCE counts it.

    Raises:
      BertJaxError: a package is missing, see :func:`bert_jax.convert.hf.export`, the exporter failed, or the file computes
        something else than the model.
    """
    _require_packages()
    params, config = hf.sayable(params, config, tokenizer, origin)
    hf.write(params, config, tokenizer, directory, origin=origin, dtype="float32")
    path = directory / FOLDER / FILE
    path.parent.mkdir()
    console, doing = Console(stderr=True), "tracing and checking the ONNX graph"
    if not console.is_terminal:
        console.print(doing)
    with console.status(doing) if console.is_terminal else nullcontext(), _quiet():
        _trace(config, origin, directory, path)
        difference = _largest_difference(params, config, path)
    if not difference <= LARGEST_DIFFERENCE:
        raise BertJaxError(
            f"the ONNX graph differs from the model by {difference:.1e}, more than {LARGEST_DIFFERENCE:.0e}: not written; "
            "try other versions of torch and transformers"
        )
    logger.info("%s/%s is within %.1e of the model in onnxruntime", FOLDER, FILE, difference)
    return difference


def _require_packages() -> None:
    try:
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise BertJaxError(f"ONNX needs {error.name}, which is not installed: pip install 'bert_jax[onnx]'") from None


def _trace(config: EncoderConfig, origin: Origin | None, directory: Path, path: Path) -> None:
    import onnx_ir
    import torch
    import transformers
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    family = family_of(config, origin)
    name = family.architecture(plain_form(config, family).with_heads)
    # Eager attention is the plain product, softmax, product; the fused one traces to more nodes, no faster.
    model = getattr(transformers, name).from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    if "choice" in config.with_heads:
        logger.warning("the multiple-choice head is not part of the ONNX graph: only the encoder is")
        model = model.base_model
    names = [n for n in _INPUTS if n != "token_type_ids" or config.segments > 1]
    found = []

    class Graph(torch.nn.Module):
        """Tensors by position in and out, as ONNX has it; the names of those that come out are in ``found``."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids=None):
            segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, **segments)
            kept = {"last_hidden_state": outputs.hidden_states[-1]}
            kept |= {name: tensor for name, tensor in outputs.items() if name.endswith("logits")}
            if "pooler" in config.with_heads and "pooler_output" in outputs:  # transformers invents one where there is none
                kept["pooler_output"] = outputs.pooler_output
            found[:] = kept
            return tuple(kept.values())

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=config.max_length)
    example = tuple(torch.ones((2, min(8, config.max_length)), dtype=torch.int64) for _ in names)
    try:
        program = torch.onnx.export(
            Graph(), example, input_names=names, dynamic_shapes={n: {0: batch, 1: length} for n in names}, dynamo=True,
            opset_version=OPSET, verbose=False,
        )
    except Exception as error:  # whatever it stumbles over
        reason = " ".join(str(error.__cause__ or error).split())
        raise BertJaxError(f"PyTorch's exporter cannot trace {name} ({reason[:200]}): try another version of torch") from error
    graph = program.model
    for value, name in zip(graph.graph.outputs, found, strict=True):
        value.name = name
    ClearMetadataAndDocStringPass()(graph)  # stack traces, with the paths of this machine
    size = sum(tensor.const_value.nbytes for tensor in graph.graph.initializers.values())
    onnx_ir.save(graph, path, external_data=EXTERNAL if size > _FILE_BYTES else None)


def _largest_difference(params: Mapping[str, Any], config: EncoderConfig, path: Path) -> float:
    """Over all outputs, at real tokens: a small padded batch, and one sequence as long as they get."""
    import onnxruntime

    config = dataclasses.replace(config, compute_dtype="float32")
    apply = jax.jit(lambda params, batch: api.apply(params, config, batch))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    noise, largest = np.random.default_rng(0), 0.0
    for rows, length in ((3, min(12, config.max_length)), (1, config.max_length)):
        mask = np.arange(length) < np.maximum(1, length - 2 * np.arange(rows))[:, None]
        # RoBERTa counts positions by the padding piece, whose id is one less than its first position.
        padding = max(config.position_offset - 1, 0)
        ids = noise.integers(0, config.vocab_size, mask.shape)
        ids = np.where(mask & (ids != padding), ids, np.where(mask, (padding + 1) % config.vocab_size, padding))
        segments = noise.integers(0, max(config.segments, 1), mask.shape)
        feed = dict(zip(_INPUTS, (ids, mask.astype(np.int64), segments), strict=True))
        computed = session.run(names, {node.name: feed[node.name] for node in session.get_inputs()})
        with jax.default_matmul_precision("highest"):
            batch = {"input_ids": ids.astype(np.int32), "attention_mask": mask, "segment_ids": segments.astype(np.int32)}
            outputs = jax.device_get(apply(params, batch))
        for name, theirs in zip(names, computed, strict=True):
            ours = _ours(name, outputs, config)
            if theirs.shape != ours.shape:
                raise BertJaxError(f"the ONNX graph's {name} is {list(theirs.shape)} where the model's is {list(ours.shape)}")
            if theirs.shape[:2] == mask.shape:
                theirs, ours = theirs[mask], ours[mask]
            largest = max(largest, float(np.abs(theirs - ours).max() / max(1.0, np.abs(ours).max())))
    return largest


def _ours(name: str, outputs: api.Outputs, config: EncoderConfig) -> np.ndarray:
    """What we compute under a name of transformers."""
    match name:
        case "last_hidden_state":
            return outputs.hidden
        case "pooler_output":
            return outputs.pooled
        case "start_logits" | "end_logits":
            return outputs.logits["span"][..., int(name == "end_logits")]
        case "prediction_logits":
            head = "mlm"
        case "seq_relationship_logits" | "sop_logits":
            head = "pair"
        case _:  # "logits", of classes with one head
            (head,) = outputs.logits
    return outputs.logits[head][..., : config.vocab_size] if head == "mlm" else outputs.logits[head]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of torch and transformers on their own affairs."""
    from transformers.utils import logging as theirs

    exporter = logging.getLogger("torch.onnx")
    level, verbosity, bars = exporter.level, theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    exporter.setLevel(logging.ERROR)
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()
