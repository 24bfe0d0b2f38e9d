"""Files of named tensors, read and written one tensor at a time: safetensors (one file or shards) and PyTorch's pickle.

Nothing keeps a file mapped: what a process holds is the tensor at hand and what the caller made of the others.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from bert_jax.errors import BertJaxError
from bert_jax.files import read_json

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SAFETENSORS, PICKLE, INDEX = "model.safetensors", "pytorch_model.bin", ".index.json"

_CODES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}


def dtype_name(said: str) -> str:
    """A dtype of ``DTYPES`` by its name there or as ``bf16``.

    Raises:
      BertJaxError: it is none of them.
    """
    name = {"bf16": "bfloat16"}.get(said, said)
    if name not in DTYPES:
        raise BertJaxError(f"dtype is {said!r}: weights are written in float32, float16 or bfloat16 (bf16 for short)")
    return name


class Tensors(Protocol):
    """The tensors of a checkpoint.

    Attributes:
      path: for messages. shapes, dtypes: of every tensor, by name.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]

    def read(self, name: str) -> np.ndarray:
        """One tensor in its own dtype. Raises BertJaxError where the file is damaged."""


def open_tensors(directory: Path) -> Tensors:
    """The weights in a Hugging Face directory.

    Raises:
      BertJaxError: there are none, a shard is missing or lies elsewhere, or the file is damaged.
    """
    for name, kind in ((SAFETENSORS, Safetensors), (PICKLE, TorchPickle)):
        if (directory / name).is_file():
            return kind(directory / name, [directory / name])
        if (directory / (name + INDEX)).is_file():
            return kind(directory / (name + INDEX), _shards(directory / (name + INDEX)))
    unread = [name for name in ("tf_model.h5", "flax_model.msgpack", "model.onnx") if (directory / name).exists()]
    hint = f"; {unread[0]} is not read" if unread else ""
    raise BertJaxError(f"{directory} holds no {SAFETENSORS} and no {PICKLE}{hint}")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise BertJaxError(f"{index} has no weight_map: it is not the index of a checkpoint")
    files = []
    for name in sorted(set(names.values())):
        if Path(name).name != name or name in (".", ".."):
            raise BertJaxError(f"{index} names {name!r}, which lies outside its folder: not read")
        if not (index.parent / name).is_file():
            raise BertJaxError(f"{index.parent / name} is missing: download the checkpoint again")
        files.append(index.parent / name)
    return files


class Safetensors:
    """One or several safetensors files."""

    def __init__(self, path: Path, files: list[Path]):
        self.path = path
        self._file: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        for file in files:
            with _opened(file) as tensors:
                for name in tensors.keys():
                    header = tensors.get_slice(name)
                    self._file[name] = file
                    self.shapes[name] = tuple(header.get_shape())
                    self.dtypes[name] = _DTYPE_OF_CODE.get(header.get_dtype(), np.dtype(np.void))

    def read(self, name: str) -> np.ndarray:
        with _opened(self._file[name]) as tensors:  # opened anew: closing unmaps the pages that were read
            return tensors.get_tensor(name)


_DTYPE_OF_CODE = {code: dtype for dtype, code in _CODES.items()} | {
    "F64": np.dtype(np.float64), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32), "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8), "BOOL": np.dtype(np.bool_),
}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise BertJaxError(f"{file} is damaged or no safetensors file ({error}): download or save it again") from error


class TorchPickle:
    """One or several ``pytorch_model.bin``. Read by PyTorch's loader of plain tensors, which runs no code of the file."""

    def __init__(self, path: Path, files: list[Path]):
        try:
            import torch
        except ImportError:
            raise BertJaxError(
                f"{path} needs PyTorch to be read: pip install 'bert_jax[torch]', or save it as {SAFETENSORS}"
            ) from None
        self.path = path
        self._tensors: dict[str, Any] = {}
        for file in files:
            self._tensors |= _unpickle(torch, file)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        names = {getattr(torch, name): dtype for name, dtype in DTYPES.items()}
        names |= {torch.float64: np.dtype(np.float64), torch.int64: np.dtype(np.int64)}
        self.dtypes = {name: names.get(tensor.dtype, np.dtype(np.void)) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        import torch

        tensor = self._tensors[name].detach().contiguous()
        if tensor.dtype == torch.bfloat16:  # numpy has no such dtype: the same bits under another name
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def _unpickle(torch, file: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters about the file is said in our own line
            try:
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling stumbles over
        reason = " ".join(str(error).split())
        if "GLOBAL" in reason:
            raise BertJaxError(f"{file} holds more than tensors; such pickles can run code and are not opened") from error
        raise BertJaxError(f"{file} is damaged or no PyTorch checkpoint ({reason[:120]})") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise BertJaxError(f"{file} is not a state dict: names with tensors are needed, as save_pretrained writes them")
    return content


class Entry(NamedTuple):
    """A tensor to write; ``array`` makes it when its turn has come."""

    name: str
    shape: tuple[int, ...]
    array: Callable[[], np.ndarray]


def write_safetensors(path: Path, entries: list[Entry], dtype: np.dtype, shown: Iterable[Entry] | None = None) -> None:
    """Writes entries in ``dtype`` (float32, float16 or bfloat16) as one safetensors file, holding one of them at a time.

    The format is an 8-byte length, a JSON header with every tensor's dtype, shape and place, then the bytes. (The library's
    own writer takes all tensors at once.) ``shown`` is the same entries wrapped to show progress.

    Raises:
      BertJaxError: a value does not fit the dtype.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in entries:
        end = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in shown or entries:
            file.write(_bytes(entry, dtype))
        file.flush()
        os.fsync(file.fileno())


def _bytes(entry: Entry, dtype: np.dtype) -> memoryview | bytes:
    array = entry.array()
    assert array.shape == tuple(entry.shape), (entry.name, array.shape, entry.shape)
    with np.errstate(over="ignore"):
        written = np.ascontiguousarray(array, dtype)
    if written.dtype != array.dtype and not np.isfinite(written).all():
        raise BertJaxError(f"{entry.name} holds values beyond the range of {dtype.name}: choose bfloat16 or float32")
    return written.reshape(-1).view(np.uint8).data if written.size else b""
