"""Shared fixtures: where real data lies, and eight fake devices for everything that shards."""

import base64
import gc
import os
import pathlib
import string
import sys
from importlib.metadata import version

# Before jax is imported anywhere: eight host devices, quick compilation instead of quick code (tiny shapes spend their time
# in the compiler), and a compilation cache that survives between runs.
os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true",
    # Half of the compiler's time. XLA ends a process at a flag that it does not know, as it has none of this name since 0.11.
    # The other one: programs are not cut into 32 parts first.
    *(["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
      if version("jaxlib").startswith("0.10.") else []),
    # Eight devices wait for each other on two cores: a busy machine must not look like a dead one (40 s by default).
    "--xla_cpu_collective_call_terminate_timeout_seconds=600", "--xla_cpu_collective_timeout_seconds=600",
])
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")  # nor may steps of one test overlap on those few threads
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # sixty processes of tests would each compile the package for themselves
ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

gc.set_threshold(50_000, 20, 10)  # tracing makes thousands of objects: a tenth of all time went into looking for cycles
LARGE = 4 * 2**30  # bytes
WORDS = "the a cat dog bird sat ran sang on in under mat road tree he she it said why not one two red blue and but".split()


# Files of minutes, handed out first, so that no worker is left alone with one at the end.
LONGEST = (
    "test_multihost", "test_babysit", "test_job", "test_own_machines", "test_rehearsal", "test_create_delete",  # these wait
    "test_several_processes", "test_every_mesh", "test_plan", "test_remesh", "test_together", "test_resume", "test_finetuning",
    "test_finetuning_folders", "test_train", "test_notebook", "test_published_recipes", "test_mixout", "test_smart",
    "test_readme", "test_hlo", "test_resume_turns", "test_objective_runs", "test_electra_export", "test_replaced_tokens",
    "test_best", "test_recipe",
)


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")
LOOKED_AT = ("test_record", "test_plots", "test_notebook")


@pytest.fixture(autouse=True, scope="module")
def pictures(request):
    """All of a figure is built; it is turned into pixels where a test looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem not in LOOKED_AT:
            from matplotlib.figure import Figure

            patch.setattr(Figure, "tight_layout", lambda *_, **__: None)
            patch.setattr(Figure, "savefig", lambda _, path, **__: pathlib.Path(path).write_bytes(PNG))
        yield


@pytest.fixture(autouse=True, scope="module")
def within_memory():
    """After a file with which a worker has grown large, jax forgets what it has compiled: two workers held 8 GB each."""
    yield
    if _resident() > LARGE and "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


def _resident() -> int:
    """Bytes of this process in memory."""
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real data; a test that needs it is skipped, with the reason, where it is absent."""
    path = pathlib.Path(os.environ.get("BERT_JAX_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "README.md").is_file():
        pytest.skip("no real data: set BERT_JAX_DATA or put it at ../shared/data")
    return path


def _write_corpus(path: pathlib.Path, documents: int, seed: int = 0) -> pathlib.Path:
    """Documents of random sentences, one sentence a line, blank lines between documents; few words, so easily learnt."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(documents):
            for _ in range(rng.integers(3, 12)):
                file.write(" ".join(rng.choice(WORDS[:12], rng.integers(3, 9))) + " .\n")
            file.write("\n")
    return path


@pytest.fixture(scope="session")
def write_corpus():
    """``write_corpus(path, documents, seed=0)`` writes text that a tiny model learns in seconds; returns the path."""
    return _write_corpus


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> pathlib.Path:
    """A token store of 150 small documents, a fifth of them held out; its vocabulary has fewer than 96 pieces."""
    from bert_jax.data.prepare import prepare
    from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    letters = [*string.ascii_lowercase, "."]
    words = [word for word in WORDS if word not in letters]
    tokenizer = WordPieceTokenizer([*SPECIALS, *letters, *(f"##{letter}" for letter in letters), *words])
    text = _write_corpus(folder / "text.txt", 150)
    prepare([text], folder / "store", tokenizer, sentences="line", heldout=0.2, workers=1, progress=False)
    return folder / "store"


@pytest.fixture(scope="session")
def tiny_experiment():
    """``tiny_experiment("bert", "train.steps=8")``: what tests/tiny_bert.py describes, with assignments applied."""
    from bert_jax import config
    from bert_jax.training.pretrain import load_config

    return lambda family, *assignments: config.override(
        load_config(ROOT / "tests" / f"tiny_{family}.py"), assignments
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_store, tmp_path_factory) -> pathlib.Path:
    """A Hugging Face directory of a BERT that has learnt nothing: 2 layers, D 32, up to 32 tokens, the tiny store's words."""
    import jax

    import bert_jax
    from bert_jax import tokenizers
    from bert_jax.models import api
    from bert_jax.models.config import EncoderConfig

    tokenizer = tokenizers.load(tiny_store / "tokenizer")
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, embedding_width=32, hidden_width=32, layers=2, heads=2, ffn_width=64, max_length=32
    )
    params = jax.tree.map(np.asarray, api.init(config, jax.random.key(0)))
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    bert_jax.save(bert_jax.Model(params, config, tokenizer), folder)
    return folder
