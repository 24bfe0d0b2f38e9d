"""Files of tensors: what they hold, what is wrong with them, and that nothing in them is ever run or half-written."""

import json
import pathlib
import pickle
import weakref

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax.convert.tensors import DTYPES, Entry, TorchPickle, open_tensors, write_safetensors
from bert_jax.errors import BertJaxError

NOISE = np.random.default_rng(0)
TENSORS = {
    "a.weight": NOISE.standard_normal((3, 4)).astype(np.float32),
    "b.bias": NOISE.standard_normal(5).astype(np.float16),
    "c": NOISE.standard_normal((2, 1, 2)).astype(ml_dtypes.bfloat16),
    "scalar": np.array(7, np.float32),
    "position_ids": np.arange(6)[None],
}


def assert_holds(opened, expected) -> None:
    assert opened.shapes == {name: a.shape for name, a in expected.items()}
    for name, a in expected.items():
        assert opened.dtypes[name] == a.dtype
        assert opened.read(name).tobytes() == a.tobytes() and opened.read(name).dtype == a.dtype


def write_shards(folder: pathlib.Path) -> dict[str, str]:
    names = list(TENSORS)
    files = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, some in files.items():
        save_file({name: TENSORS[name] for name in some}, folder / file)
    places = {name: file for file, some in files.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_one_file_and_shards(tmp_path):
    write_shards(tmp_path)
    assert_holds(open_tensors(tmp_path), TENSORS)
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert_holds(open_tensors(tmp_path), TENSORS)


def test_pickles_of_both_formats(tmp_path):
    torch = pytest.importorskip("torch", reason="pytorch_model.bin needs PyTorch")
    state = {name: torch.tensor(a.astype(np.float32) if a.dtype == ml_dtypes.bfloat16 else a) for name, a in TENSORS.items()}
    state["c"] = state["c"].bfloat16()
    for old in (False, True):
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
        assert_holds(open_tensors(tmp_path), TENSORS)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {name: "pytorch_model-00001-of-00001.bin" for name in TENSORS}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_holds(open_tensors(tmp_path), TENSORS)


class Trap:
    """Unpickled by Python, it writes a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path):
    torch = pytest.importorskip("torch", reason="pytorch_model.bin needs PyTorch")
    sprung = tmp_path / "sprung"
    content = {"a": torch.zeros(2), "b": Trap(sprung)}
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(BertJaxError, match="pytorch_model.bin (holds more than tensors|is damaged)") as error:
            open_tensors(tmp_path)
        assert "\n" not in str(error.value) and not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works


def test_a_pickle_without_names_or_torch(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="pytorch_model.bin needs PyTorch")
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(BertJaxError, match="is not a state dict"):
        open_tensors(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(BertJaxError, match=r"needs PyTorch to be read: pip install 'bert_jax\[torch\]', or save it as model"):
        TorchPickle(tmp_path / "pytorch_model.bin", [])


@pytest.mark.parametrize("elsewhere", ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", ".."])
def test_an_index_that_points_elsewhere(tmp_path, elsewhere):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(TENSORS, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": elsewhere}}))
    with pytest.raises(BertJaxError, match="lies outside its folder"):
        open_tensors(folder)


def test_an_interrupted_download(tmp_path):
    write_shards(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-3])
    with pytest.raises(BertJaxError, match="00002-of-00002.safetensors is damaged"):
        open_tensors(tmp_path)
    second.unlink()
    with pytest.raises(BertJaxError, match="00002-of-00002.safetensors is missing: download the checkpoint again"):
        open_tensors(tmp_path)
    for content in ("{}", "[]", "{", '{"weight_map": {"a": 7}}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(BertJaxError, match="index.json"):
            open_tensors(tmp_path)


def lying_header(tmp_path, change) -> pathlib.Path:
    save_file({"a": np.ones((2, 3), np.float32)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["a"].update(shape=[2, 300]),
        lambda header: header["a"].update(data_offsets=[0, 24_000]),
        lambda header: header["a"].update(data_offsets=[8, 0]),
        lambda header: header["a"].update(dtype="F17"),
        lambda header: header.update(b=header["a"]),
    ],
    ids=["shape", "beyond the end", "backwards", "dtype", "overlap"],
)
def test_a_header_that_lies(tmp_path, change):
    with pytest.raises(BertJaxError, match="damaged or no safetensors file") as error:
        open_tensors(lying_header(tmp_path, change))
    assert "\n" not in str(error.value)


def test_a_header_of_absurd_length(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(BertJaxError, match="damaged or no safetensors file"):
        open_tensors(tmp_path)


def entries(tensors) -> list[Entry]:
    return [Entry(name, a.shape, lambda a=a: a) for name, a in tensors.items()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_what_the_library_reads(tmp_path, dtype):
    floats = {name: np.float32(a) for name, a in TENSORS.items()} | {"transposed": np.ones((3, 2), np.float32).T * [1, 2, 3],
                                                                     "empty": np.zeros((0, 3), np.float32)}
    write_safetensors(tmp_path / "model.safetensors", entries(floats), DTYPES[dtype])
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == floats.keys()
    for name, a in floats.items():
        assert read[name].dtype == DTYPES[dtype] and np.array_equal(read[name], a.astype(DTYPES[dtype])), name


def test_values_beyond_float16_are_refused(tmp_path):
    big = {"fine": np.ones(2, np.float32), "big": np.float32([1.0, 1e6])}
    with pytest.raises(BertJaxError, match="big holds values beyond the range of float16: choose bfloat16"):
        write_safetensors(tmp_path / "x", entries(big), DTYPES["float16"])
    write_safetensors(tmp_path / "model.safetensors", entries(big), DTYPES["bfloat16"])


def test_one_tensor_is_held_at_a_time(tmp_path):
    """The next array is asked for only when the last has been written and let go."""
    alive = []

    def make():
        assert not any(reference() is not None for reference in alive)
        a = np.ones((1000, 1000), np.float32)
        alive.append(weakref.ref(a))
        return a

    write_safetensors(tmp_path / "x", [Entry(f"t{i}", (1000, 1000), make) for i in range(4)], DTYPES["float32"])
    assert len(alive) == 4 and (tmp_path / "x").stat().st_size > 16_000_000


def test_parameters_of_a_pickle_are_read_as_tensors(tmp_path):
    torch = pytest.importorskip("torch", reason="pytorch_model.bin needs PyTorch")
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "pytorch_model.bin")
    assert open_tensors(tmp_path).read("a").tolist() == [1.0, 1.0]
