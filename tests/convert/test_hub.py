"""Models from the hub, spoken by a server in this process: what is asked for, what breaks, and that it goes on afterwards.

No test here reaches a network. tests/test_model.py has what happens without huggingface_hub and with its cache alone.
"""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import types
from urllib.parse import unquote, urlsplit

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.convert import hub
from bert_jax.embedding.settings import SentenceSettings
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

huggingface_hub = pytest.importorskip("huggingface_hub", reason="hub ids need huggingface_hub (the hub extra)")
from huggingface_hub import constants  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENIZER = WordPieceTokenizer([*SPECIALS, *"abcdef"])
CONFIG = EncoderConfig(
    vocab_size=11, embedding_width=8, hidden_width=8, layers=2, heads=2, ffn_width=12, max_length=9,
    with_heads=("pooler", "mlm"),
)  # fmt: skip
SHA = "5" * 40
WEIGHTS = "model.safetensors"


class Hub(http.server.ThreadingHTTPServer):
    """The part of the hub that downloads use: what a model is, its list of files, and the files, from a byte on.

    Attributes:
      files: of every model, by id and path. requests: (method, path of the file, "Range" header) of every file asked for.
      cut: a file's path with the bytes after which every connection that sends it breaks.
      answers: status and error code (header X-Error-Code) with which a model is refused.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: dict[str, int] = {}
        self.answers: dict[str, tuple[int, str | None]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, name: str, model: Model, folder: pathlib.Path, **more: bytes) -> dict[str, bytes]:
        """A model as files; returns them."""
        bert_jax.save(model, folder, format="sentence-transformers" if model.sentence else "hf")
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.files[name] = found | more
        return self.files[name]

    def asked_for(self) -> set[str]:
        return {path for method, path, _ in self.requests if method == "GET"}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def send(self, status: int, content: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "X-Repo-Commit": SHA, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:sent])
        if sent is not None:
            self.close_connection = True  # fewer bytes than promised: to the other side the connection broke

    def refuse(self, status: int, code: str | None) -> None:
        self.send(status, b"{}", {"X-Error-Code": code} if code else {})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        listing, path = path.startswith("api/models/"), path.removeprefix("api/models/")
        name = next((name for name in (*self.server.files, *self.server.answers) if f"{path}/".startswith(f"{name}/")), "")
        if not name:
            return self.refuse(404, "RepoNotFound")
        if name in self.server.answers:
            return self.refuse(*self.server.answers[name])
        rest = path.removeprefix(name).strip("/").split("/", 2)
        if len(rest) > 1 and rest[1] not in (SHA, "main", "v1"):
            return self.refuse(404, "RevisionNotFound")
        files = self.server.files[name]
        if listing and rest[0] == "tree":
            entries = [{"type": "file", "path": p, "size": len(a), "oid": etag(a)} for p, a in files.items()]
            return self.send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        if listing:
            return self.send(200, json.dumps({"id": name, "sha": SHA, "siblings": []}).encode(), {})
        self.send_file(rest[2], files)

    do_HEAD = do_GET

    def send_file(self, path: str, files: dict[str, bytes]) -> None:
        span = self.headers.get("Range")
        self.server.requests.append((self.command, path, span))
        if path not in files:
            return self.refuse(404, "EntryNotFound")
        content, headers, begin = files[path], {"ETag": f'"{etag(files[path])}"'}, 0
        if span:
            begin = int(span.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and path in self.server.cut
        sent = max(self.server.cut[path] - begin, 0) if cut else None
        self.send(206 if span else 200, content[begin:], headers, sent)


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A hub with nothing on it, an empty cache, and no other way out of here."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr("huggingface_hub.file_download.time", types.SimpleNamespace(sleep=lambda seconds: None))
    huggingface_hub.close_session()  # a client keeps the proxies that it was made with
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def model() -> Model:
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: api.init(CONFIG, jax.random.key(0)))
    return Model(jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape, np.float32), shapes), CONFIG, TOKENIZER)


def assert_same(found: Model, expected: Model) -> None:
    assert found.config == expected.config and found.tokenizer.hash == expected.tokenizer.hash
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found.params, expected.params)))


def refusal(name: str) -> str:
    with pytest.raises(BertJaxError) as error:
        bert_jax.load(name)
    line = str(error.value)
    assert line.startswith(f"{name}: ") and "\n" not in line and len(line) < 300
    return line


def test_a_model_is_downloaded_once(served, model, tmp_path):
    served.put("someone/small", model, tmp_path / "a")
    assert_same(bert_jax.load("someone/small"), model)
    assert WEIGHTS in served.asked_for()
    served.requests.clear()
    for name in ("someone/small", "someone/small@main", "someone/small@v1", f"someone/small@{SHA}"):
        assert_same(bert_jax.load(name), model)
    assert not served.asked_for()


def test_a_name_without_an_organisation(served, model, tmp_path, monkeypatch):
    served.put("small", model, tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert_same(bert_jax.load("small"), model)
    (tmp_path / "small").mkdir()  # what lies here comes first
    with pytest.raises(BertJaxError, match="small is no checkpoint"):
        bert_jax.load("small")


def test_only_what_is_read_is_asked_for(served, model, tmp_path):
    files = served.put("someone/small", model._replace(sentence=SentenceSettings(max_length=7)), tmp_path / "a")
    wanted = set(files)
    assert {"1_Pooling/config.json", "modules.json", "vocab.txt", WEIGHTS} <= wanted
    for name in ("tf_model.h5", "pytorch_model.bin", "flax_model.msgpack", "rust_model.ot", "model.fp16.safetensors",
                 "checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt", "onnx/model.onnx", "onnx/tokenizer.json",
                 "openvino/openvino_model.bin", "README.md", ".gitattributes", "training_args.bin", "script.py"):  # fmt: skip
        files[name] = b"not wanted"
    found = bert_jax.load("someone/small")
    assert found.sentence == SentenceSettings(max_length=7)
    assert_same(found, model)
    assert served.asked_for() == wanted


def test_the_pickle_of_a_model_that_has_nothing_else(served, model, tmp_path):
    torch = pytest.importorskip("torch", reason="pytorch_model.bin needs PyTorch")
    from safetensors.numpy import load

    files = served.put("someone/old", model, tmp_path / "a")
    state = {name: torch.tensor(a) for name, a in load(files.pop(WEIGHTS)).items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    files |= {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes(), "tf_model.h5": b"not wanted"}
    assert_same(bert_jax.load("someone/old"), model)
    assert "pytorch_model.bin" in served.asked_for() and "tf_model.h5" not in served.asked_for()


def test_shards(served, model, tmp_path):
    from safetensors.numpy import load, save

    files = served.put("someone/large", model, tmp_path / "a")
    tensors = load(files.pop(WEIGHTS))
    names, shards = sorted(tensors), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {name: shards[i % 2] for i, name in enumerate(names)}
    for shard in shards:
        files[shard] = save({name: tensors[name] for name in names if places[name] == shard})
    files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    files["pytorch_model-00001-of-00001.bin"] = b"not wanted"
    assert_same(bert_jax.load("someone/large"), model)
    assert set(shards) <= served.asked_for() and "pytorch_model-00001-of-00001.bin" not in served.asked_for()


def test_the_encoder_in_a_folder_of_its_own(served, model, tmp_path):
    """As sentence-transformers wrote it before version 2."""
    files = served.put("someone/early", model._replace(sentence=SentenceSettings(max_length=7)), tmp_path / "a")
    modules = json.loads(files["modules.json"])
    modules[0]["path"] = "0_Transformer"
    above = {"1_Pooling/config.json": files.pop("1_Pooling/config.json"), "modules.json": json.dumps(modules).encode()}
    served.files["someone/early"] = above | {f"0_Transformer/{name}": content for name, content in files.items()}
    assert_same(bert_jax.load("someone/early"), model)


def test_a_connection_that_breaks(served, model, tmp_path):
    """One line; files that had come whole are kept, and the next call asks for the others."""
    files = served.put("someone/small", model, tmp_path / "a")
    served.cut[WEIGHTS] = len(files[WEIGHTS]) // 2
    line = refusal("someone/small")
    assert "the download broke off (RemoteProtocolError: " in line
    assert line.endswith("files that are whole were kept, try again")
    assert list((tmp_path / "cache").rglob(f"snapshots/*/{WEIGHTS}")) == [], "half a file has a name that a reader would find"
    assert served.asked_for() == set(files)
    served.cut.clear()
    served.requests.clear()
    assert_same(bert_jax.load("someone/small"), model)
    assert served.asked_for() == {WEIGHTS}


def test_a_connection_that_breaks_and_comes_back(served, model, tmp_path, monkeypatch):
    """What huggingface_hub mends by itself, from the byte where it stopped, needs no word."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    served.put("someone/small", model, tmp_path / "a")
    served.cut[WEIGHTS] = 2000
    monkeypatch.setattr("huggingface_hub.file_download.time", types.SimpleNamespace(sleep=lambda seconds: served.cut.clear()))
    assert_same(bert_jax.load("someone/small"), model)
    assert [span for method, path, span in served.requests if (method, path) == ("GET", WEIGHTS)] == [None, "bytes=2000-"]


def test_an_interrupted_download_without_a_network(served, model, tmp_path, monkeypatch):
    served.put("someone/small", model, tmp_path / "a")
    served.cut[WEIGHTS] = 100
    refusal("someone/small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode, HF_HUB_OFFLINE, and not wholly in the cache" in refusal("someone/small")


def test_offline_mode(served, model, tmp_path, monkeypatch):
    served.put("someone/small", model, tmp_path / "a")
    bert_jax.load("someone/small")
    served.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(bert_jax.load("someone/small"), model)
    assert_same(bert_jax.load("someone/small@main"), model)
    for name in ("someone/other", "someone/small@v1"):
        assert "the hub could not be asked (offline mode, HF_HUB_OFFLINE, and not wholly in the cache)" in refusal(name)
    assert served.requests == []


def test_no_network(served, model, tmp_path):
    served.put("someone/small", model, tmp_path / "a")
    bert_jax.load("someone/small")
    served.shutdown()
    served.server_close()
    huggingface_hub.close_session()  # its open connection would still be answered
    assert_same(bert_jax.load("someone/small"), model)  # from the cache
    assert "the hub could not be asked (ConnectError: " in refusal("someone/other")


@pytest.mark.parametrize(
    ("status", "code", "part"),
    [
        (404, "RepoNotFound", "no such model on the hub; if it is private: hf auth login"),
        (401, "RepoNotFound", "no such model on the hub; if it is private: hf auth login"),
        (401, None, "the hub answers 401: log in with a token that may read it"),
        (403, "GatedRepo", "accept its conditions on its page of the hub, then log in"),
        (500, None, "the hub could not be asked (HfHubHTTPError: Server error '500 Internal Server Error'"),
    ],
)
def test_answers_of_the_hub(served, status, code, part):
    served.answers["someone/secret"] = (status, code)
    assert part in refusal("someone/secret")


def test_a_model_and_a_revision_that_are_not_there(served, model, tmp_path):
    served.put("someone/small", model, tmp_path / "a")
    assert "no such model on the hub" in refusal("someone/else")
    assert refusal("someone/small@v2").endswith("the model is on the hub, its revision v2 is not")
    for name in ("a/b/c", "some one/small", "-x/y", "someone/.."):
        assert "there is no such file or directory, and it is no hub id (org/name)" in refusal(name)
    assert served.requests == []


def test_files_that_are_no_model(served, model, tmp_path):
    served.files["someone/data"] = {"README.md": b"words", "data.json": b"[]"}
    with pytest.raises(BertJaxError, match="is no checkpoint: it has no experiment.json"):
        bert_jax.load("someone/data")
    files = served.put("someone/keras", model, tmp_path / "a")
    del files[WEIGHTS]
    files["tf_model.h5"] = b"not wanted"
    with pytest.raises(BertJaxError, match="holds no model.safetensors and no pytorch_model.bin"):
        bert_jax.load("someone/keras")
    assert "tf_model.h5" not in served.asked_for()


def test_a_damaged_file_on_the_hub(served, model, tmp_path):
    files = served.put("someone/small", model, tmp_path / "a")
    files[WEIGHTS] = files[WEIGHTS][:-5]
    with pytest.raises(BertJaxError, match="model.safetensors is damaged or no safetensors file") as error:
        bert_jax.load("someone/small")
    assert "\n" not in str(error.value)


def test_a_path_that_is_no_name_asks_nobody(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("/no/where", "./x", "../x", "a b", "x/y/z", ""):
        with pytest.raises(BertJaxError, match="there is no such file or directory, and it is no hub id"):
            hub.download(name)


def test_from_the_shell(served, model, tmp_path):
    """With huggingface_hub's own environment variables; nothing but the one line on standard error."""
    served.put("someone/small", model, tmp_path / "a")
    served.cut["config.json"] = 0
    environment = os.environ | {
        "HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*", "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "home" / "cache"),
    }  # fmt: skip
    for name in ("HF_HUB_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        environment.pop(name, None)
    impatient = "import sys, time; time.sleep = lambda seconds: None; import bert_jax.cli; sys.exit(bert_jax.cli.main())"

    def run(*words: str) -> subprocess.CompletedProcess:
        words = (sys.executable, "-c", impatient, *words)
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)

    broken = run("inspect", "someone/small")
    assert broken.returncode == 1 and broken.stdout == "", broken
    assert broken.stderr.startswith("bert-jax: error: someone/small: the download broke off") and broken.stderr.count("\n") == 1
    served.cut.clear()
    done = run("convert", "--from", "someone/small", "--to", "out")
    assert done.returncode == 0 and done.stderr == "", done
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == served.files["someone/small"][WEIGHTS]
