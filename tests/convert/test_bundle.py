"""The reader of TensorFlow's checkpoint files: whole, damaged and lying ones, real indexes, and TensorFlow itself."""

import pathlib

import numpy as np
import pytest

from bert_jax.convert import bundle as bundle_module
from bert_jax.convert.bundle import TensorBundle, find_prefix
from bert_jax.errors import BertJaxError
from tests.convert.bundle_writer import (
    BFLOAT16,
    DTYPES,
    MAGIC,
    block,
    literal,
    masked_crc,
    message,
    table,
    varint,
    write_bundle,
)  # fmt: skip


def draw(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    kind = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    return (np.random.default_rng(seed).standard_normal(shape) * 50).astype(np.int64).astype(kind)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture
def prefix(tmp_path) -> pathlib.Path:
    return tmp_path / "bert_model.ckpt"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_dtype_comes_back_bit_for_bit(prefix, shards, compressed):
    tensors = {f"bert/encoder/layer_{i}/{dtype}": draw((3, i + 1), dtype, i) for i, dtype in enumerate(DTYPES)}
    tensors |= {"global_step": draw((), "int64"), "empty": draw((0, 4), "float32"), "bert/é": draw((2, 1, 3), "float16")}
    write_bundle(prefix, tensors, shards, compressed)
    for path in (prefix, str(prefix), f"{prefix}.index"):
        bundle = TensorBundle(path)
        assert bundle.path == prefix
        assert list(bundle.shapes) == sorted(tensors) == list(bundle.dtypes)
    for name, a in tensors.items():
        assert bundle.shapes[name] == a.shape and bundle.dtypes[name] == a.dtype
        assert same(bundle.read(name), a), name


def test_a_tensor_is_read_from_its_own_bytes_only(prefix):
    tensors = {"a": draw((4,), "float32"), "b": draw((4,), "float32", 1)}
    write_bundle(prefix, tensors)
    bundle = TensorBundle(prefix)
    data = pathlib.Path(f"{prefix}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:16] + b"?" * 16)
    a = bundle.read("a")
    a += 1  # not a view of the file
    assert same(bundle.read("a"), tensors["a"])
    with pytest.raises(BertJaxError, match="the bytes of b do not have their checksum"):
        bundle.read("b")


def test_strings_are_left_out(prefix):
    strings = lambda name, fields: fields | {1: 7} if name == "_CHECKPOINTABLE_OBJECT_GRAPH" else fields  # noqa: E731
    write_bundle(prefix, {"_CHECKPOINTABLE_OBJECT_GRAPH": draw((9,), "uint8"), "a": draw((2,), "float32")}, edit=strings)
    assert TensorBundle(prefix).shapes == {"a": (2,)}


# Damage


def test_an_index_cut_anywhere_is_refused(prefix):
    write_bundle(prefix, {f"layer_{i}/kernel": draw((2, 2), "float32", i) for i in range(8)})
    index = pathlib.Path(f"{prefix}.index")
    whole = index.read_bytes()
    for size in range(len(whole)):
        index.write_bytes(whole[:size])
        with pytest.raises(BertJaxError, match="truncated|damaged"):
            TensorBundle(prefix)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_bit_of_the_index_is_refused_or_does_not_matter(prefix, compressed):
    tensors = {f"layer_{i}/kernel": draw((2, 2), "float32", i) for i in range(8)}
    write_bundle(prefix, tensors, compressed=compressed)
    index = pathlib.Path(f"{prefix}.index")
    whole = index.read_bytes()
    refused = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 0x10
        index.write_bytes(content)
        try:
            bundle = TensorBundle(prefix)
        except BertJaxError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert all(same(bundle.read(name), a) for name, a in tensors.items())
    # What does not matter: the empty meta index, its handle, and what pads the footer.
    assert refused > 0.85 * len(whole)


def test_another_file_and_no_file_are_refused(prefix):
    with pytest.raises(BertJaxError, match=r"bert_model.ckpt.index cannot be read .No such file"):
        TensorBundle(prefix)
    pathlib.Path(f"{prefix}.index").write_bytes(b"{}" * 100)
    with pytest.raises(BertJaxError, match="magic number"):
        TensorBundle(prefix)


def test_data_files_missing_short_or_damaged(prefix):
    write_bundle(prefix, {"a": draw((64,), "float32"), "b": draw((64,), "float32", 1)}, shards=2)
    bundle = TensorBundle(prefix)
    data = pathlib.Path(f"{prefix}.data-00001-of-00002")
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(BertJaxError, match="has 255 bytes but b ends at 256: truncated"):
        bundle.read("b")
    data.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(BertJaxError, match="the bytes of b do not have their checksum"):
        bundle.read("b")
    data.unlink()
    with pytest.raises(BertJaxError, match=r"00001-of-00002 cannot be read .*: it holds b"):
        bundle.read("b")
    assert same(bundle.read("a"), draw((64,), "float32"))
    with pytest.raises(BertJaxError, match="no tensor c"):
        bundle.read("c")


# Lies: every checksum is right


def shape_of(*dims: int) -> bytes:
    return message({2: [message({1: d}) for d in dims]})


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({1: 11}, "data type 11"),
        ({2: shape_of(5)}, "has 16 bytes, which is not float32 .5."),
        ({2: shape_of(-4)}, "shape"),
        ({2: shape_of(1 << 40, 1 << 40)}, "shape"),
        ({2: shape_of(0, 1 << 40, 1 << 40), 5: 0}, "shape"),
        ({2: shape_of(*[1] * 30, 4)}, "shape"),
        ({2: 4}, "number instead of a message"),
        ({2: b"\xff"}, "ends too early"),
        ({2: b"\x12\x7f"}, "cut off"),
        ({3: 1}, "data file 1 of 1"),
        ({5: 1 << 40}, "has 1099511627776 bytes"),
        ({5: b"16"}, "not a number"),
    ],
)
def test_an_entry_that_lies_is_refused_at_once(prefix, lie, why):
    write_bundle(prefix, {"a": draw((4,), "float32")}, edit=lambda name, fields: fields | (lie if name else {}))
    with pytest.raises(BertJaxError, match=why):
        TensorBundle(prefix)


@pytest.mark.parametrize("offset", [1, 1 << 40, -1])
def test_an_offset_that_lies_is_refused_before_memory_is_taken(prefix, offset):
    write_bundle(prefix, {"a": draw((4,), "float32")}, edit=lambda name, fields: fields | ({4: offset} if name else {}))
    with pytest.raises(BertJaxError, match="a ends at"):
        TensorBundle(prefix).read("a")


@pytest.mark.parametrize(
    ("header", "why"), [({2: 1}, "big-endian"), ({1: 0}, "0 data files"), ({1: 1 << 40}, "1099511627776 data files")]
)
def test_a_header_that_lies_is_refused(prefix, header, why):
    write_bundle(prefix, {"a": draw((4,), "float32")}, edit=lambda name, fields: fields if name else fields | header)
    with pytest.raises(BertJaxError, match=why):
        TensorBundle(prefix)


def test_a_partitioned_variable_is_refused_when_it_is_read(prefix):
    slices = lambda name, fields: fields | {7: b""} if name == "a" else fields  # noqa: E731
    tensors = {"a": draw((4,), "float32"), "b": draw((2,), "float32"), "\0slice of a": draw((4,), "float32")}
    write_bundle(prefix, tensors, edit=slices)
    bundle = TensorBundle(prefix)
    assert bundle.shapes == {"a": (4,), "b": (2,)}
    assert same(bundle.read("b"), tensors["b"])
    with pytest.raises(BertJaxError, match="a is stored in slices"):
        bundle.read("a")


def only_block(content: bytes, compression: int = 0) -> bytes:
    """A table whose index is this block, checksum and all."""
    handles = varint(0) + varint(0) + varint(0) + varint(len(content))
    content += bytes([compression])
    return content + masked_crc(content).to_bytes(4, "little") + handles.ljust(40, b"\0") + MAGIC


@pytest.mark.parametrize(
    ("index", "why"),
    [
        (table([]), "no header"),
        (table([(b"a", b"")]), "no header"),
        (table([(b"", message({1: 1})), (b"\xff", b"")]), "not UTF-8"),
        (table([(b"", message({1: 1})), (b"a", message({1: 1, 5: 4})), (b"a", b"")]), "stands in it twice"),
        (bytes(40) + MAGIC, "outside the file"),
        (b"\xff" * 40 + MAGIC, "does not end"),
        (only_block(b"ab"), "cut off"),
        (only_block(b"\xff" * 4), "list of places"),
        (only_block(block([(b"k", b"v")]), compression=2), "unknown way 2"),
        (only_block(b"\x00\x01\x7fkv" + block([])), "overruns"),
        (only_block(b"\x01\x01\x01kv" + block([])), "overruns"),
        (only_block(block([(b"k", varint(0) + varint(1 << 40))])), "outside the file"),
        (only_block(block([(b"k", b"")])), "ends too early"),
    ],
    ids=lambda value: value if isinstance(value, str) else "table",
)
def test_a_table_that_lies_is_refused(prefix, index, why):
    pathlib.Path(f"{prefix}.index").write_bytes(index)
    with pytest.raises(BertJaxError, match=why) as error:
        TensorBundle(prefix)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (literal(b"x" * 700), b"x" * 700),
        (varint(3) + b"\x08abc", b"abc"),
        (varint(9) + b"\x08abc" + bytes([2 << 2 | 1, 3]), b"abcabcabc"),  # one-byte distance; runs into its own output
        (varint(7) + b"\x08abc" + bytes([3 << 2 | 2, 1, 0]), b"abccccc"),  # two bytes
        (varint(5) + b"\x08abc" + bytes([1 << 2 | 3, 3, 0, 0, 0]), b"abcab"),  # four bytes
    ],
)
def test_snappy(stream, text):
    assert bundle_module._decompress(stream) == text
    for lie in (varint(len(text) + 1) + stream[1:], varint(0) + b"\x01\x01", stream[:-1]):
        with pytest.raises((ValueError, IndexError)):
            bundle_module._decompress(lie)


# Which checkpoint a folder holds


def test_find_prefix(tmp_path, caplog):
    assert find_prefix(tmp_path) is None
    (tmp_path / "checkpoint").write_bytes(b"\x93NUMPY" + bytes(range(256)))  # other libraries use the name too
    assert find_prefix(tmp_path) is None
    (tmp_path / "model.ckpt-10.index").touch()
    assert find_prefix(tmp_path) == tmp_path / "model.ckpt-10"
    (tmp_path / "model.ckpt-20.index").touch()
    with pytest.raises(BertJaxError, match="2 TensorFlow checkpoints, name one: model.ckpt-10, model.ckpt-20"):
        find_prefix(tmp_path)
    for path in ("model.ckpt-10", "/home/user/run/model.ckpt-10", "../../model.ckpt-10", r"C:\\run\\model.ckpt-10"):
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "model.ckpt-20"\n')
        assert find_prefix(tmp_path) == tmp_path / "model.ckpt-10"
    assert not caplog.records
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "../model.ckpt-30"\n')
    (tmp_path.parent / "model.ckpt-30.index").touch()
    with pytest.raises(BertJaxError, match="name one"):
        find_prefix(tmp_path)
    assert "names model.ckpt-30, which is not beside it" in caplog.text


# The real thing


@pytest.mark.parametrize(
    ("name", "variables", "layers", "last"),
    [
        ("bert_wwm", 207, 12, (21128, 768)),
        ("llSiddharthll_bert", 142, 8, (30522, 512)),
        ("uncased_L-4_H-256_A-4", 78, 4, (30522, 256)),
        ("albert_tiny_zh_google", 97, 0, (21128, 128)),
    ],
)
def test_real_indexes(data_dir, name, variables, layers, last):
    bundle = TensorBundle(data_dir / "tf_index" / name)
    assert len(bundle.shapes) == variables
    assert bundle.shapes["bert/embeddings/word_embeddings"] == last
    assert sum(f"bert/encoder/layer_{i}/output/dense/kernel" in bundle.shapes for i in range(30)) == layers
    assert {str(dtype) for name, dtype in bundle.dtypes.items() if name != "global_step"} == {"float32"}
    with pytest.raises(BertJaxError, match="cannot be read"):
        bundle.read("bert/embeddings/word_embeddings")


def test_against_tensorflow(prefix):
    tf = pytest.importorskip("tensorflow")
    names = sorted(set(DTYPES) - {"bool"})
    tensors = {f"bert/layer_{i}/{dtype}": draw((5, i), dtype, i) for i, dtype in enumerate(names)}
    tensors |= {f"bert/layer_{i}/kernel/adam_m": draw((40, 30), "float32", i) for i in range(200)}
    tensors |= {"global_step": draw((), "int64")}
    parts = [f"{prefix}-part{i}" for i in range(3)]
    for i, part in enumerate(parts):
        mine = {name: a for j, (name, a) in enumerate(sorted(tensors.items())) if j % 3 == i}
        tf.raw_ops.SaveV2(
            prefix=part, tensor_names=list(mine), shape_and_slices=[""] * len(mine),
            tensors=[tf.constant(a) for a in mine.values()],
        )  # fmt: skip
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(prefix))
    assert len(list(prefix.parent.glob("*.data-*-of-00003"))) == 3
    bundle = TensorBundle(prefix)
    assert list(bundle.shapes) == sorted(tensors)
    reader = tf.train.load_checkpoint(str(prefix))
    for name, a in tensors.items():
        assert same(bundle.read(name), a) and same(bundle.read(name), np.asarray(reader.get_tensor(name)))

    # Our test's writer, read by TensorFlow.
    write_bundle(prefix.with_name("ours"), tensors, shards=2)
    reader = tf.train.load_checkpoint(str(prefix.with_name("ours")))
    assert all(same(np.asarray(reader.get_tensor(name)), a) for name, a in tensors.items())
