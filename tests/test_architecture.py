"""Which module may import which, read from the source: the dependencies point one way, and stay that way."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "bert_jax"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def name_of(path: pathlib.Path) -> str:
    return ".".join(("bert_jax", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def statements(tree: ast.Module, *, inside_functions: bool):
    """Import statements; without ``inside_functions`` those that run when the module is imported. Imports for type
    checkers do not run."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or inside_functions:
            waiting.extend(ast.iter_child_nodes(node))


def imports(path: pathlib.Path, *, inside_functions: bool = False) -> set[str]:
    """Full names of the modules that a file imports (for ``from bert_jax import x`` it is ``bert_jax.x``)."""
    found = set()
    for node in statements(ast.parse(path.read_text()), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                whole = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = whole.is_dir() or whole.with_suffix(".py").is_file()
                found.add(f"{node.module}.{alias.name}" if is_module and node.module.startswith("bert_jax") else node.module)
    return found


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


EVERYWHERE = ("bert_jax.errors", "bert_jax.files")
# What each part of the package may import of it besides, anywhere in its files. A part may always import itself.
ALLOWED = {
    "bert_jax.errors": (),
    "bert_jax.files": ("bert_jax.errors",),
    "bert_jax.progress": (),
    "bert_jax.compilation": (),
    "bert_jax.functional": (),
    "bert_jax.config": (),
    "bert_jax.task": (),
    "bert_jax.models": ("bert_jax.config", "bert_jax.functional"),
    "bert_jax.replicas": ("bert_jax.models", "bert_jax.parallel"),
    "bert_jax.tokenizers": ("bert_jax.progress", "bert_jax.config"),
    "bert_jax.data": ("bert_jax.progress", "bert_jax.config", "bert_jax.tokenizers"),
    "bert_jax.parallel": ("bert_jax.config", "bert_jax.progress"),
    "bert_jax.objectives": (
        "bert_jax.config", "bert_jax.functional", "bert_jax.task", "bert_jax.models", "bert_jax.tokenizers",
        "bert_jax.data", "bert_jax.model", "bert_jax.warm_start",
    ),
    "bert_jax.warm_start": ("bert_jax.config", "bert_jax.models", "bert_jax.tokenizers", "bert_jax.model"),
    "bert_jax.tasks": (
        "bert_jax.functional", "bert_jax.task", "bert_jax.models", "bert_jax.tokenizers", "bert_jax.model",
        "bert_jax.data.randomness", "bert_jax.data.sources", "bert_jax.data.best_fit", "bert_jax.warm_start",
        "bert_jax.replicas", "bert_jax.progress",
    ),
    "bert_jax.embedding": (
        "bert_jax.progress", "bert_jax.config", "bert_jax.functional", "bert_jax.models", "bert_jax.tokenizers",
        "bert_jax.data.best_fit", "bert_jax.replicas",
    ),
    "bert_jax.convert": (
        "bert_jax.progress", "bert_jax.config", "bert_jax.models", "bert_jax.tokenizers",
        "bert_jax.embedding.settings",
    ),
    "bert_jax.checkpoint": ("bert_jax.parallel",),
    "bert_jax.model": (
        "bert_jax.config", "bert_jax.models", "bert_jax.tokenizers", "bert_jax.embedding.settings",
        "bert_jax.convert", "bert_jax.checkpoint",
    ),
    "bert_jax.vectors": ("bert_jax.compilation", "bert_jax.embedding", "bert_jax.model"),
    "bert_jax.inspection": (
        "bert_jax.model", "bert_jax.models", "bert_jax.tokenizers", "bert_jax.embedding.settings", "bert_jax.convert",
        "bert_jax.checkpoint",
    ),
    "bert_jax.planning": ("bert_jax.models", "bert_jax.objectives", "bert_jax.parallel", "bert_jax.training"),
    "bert_jax.reporting": ("bert_jax.progress", "bert_jax.tasks", "bert_jax.task"),
    "bert_jax.predicting": (
        "bert_jax.config", "bert_jax.convert", "bert_jax.model", "bert_jax.models", "bert_jax.tasks",
        "bert_jax.tokenizers", "bert_jax.reporting.answers", "bert_jax.compilation", "bert_jax.replicas",
    ),
    "bert_jax.finetuning": (
        "bert_jax.config", "bert_jax.convert", "bert_jax.model", "bert_jax.models", "bert_jax.tasks",
        "bert_jax.reporting", "bert_jax.parallel", "bert_jax.predicting", "bert_jax.progress", "bert_jax.training",
        "bert_jax.warm_start",
    ),
    "bert_jax.evaluating": (
        "bert_jax.finetuning", "bert_jax.model", "bert_jax.predicting", "bert_jax.progress",
        "bert_jax.reporting", "bert_jax.tasks", "bert_jax.training.recipe", "bert_jax.compilation",
    ),
    "bert_jax.fill_mask": ("bert_jax.models", "bert_jax.tokenizers", "bert_jax.compilation"),
    "bert_jax.training": (
        "bert_jax.progress", "bert_jax.config", "bert_jax.functional", "bert_jax.task", "bert_jax.models",
        "bert_jax.tokenizers", "bert_jax.data", "bert_jax.objectives", "bert_jax.tasks", "bert_jax.parallel",
        "bert_jax.model", "bert_jax.checkpoint", "bert_jax.compilation",
    ),
}


@pytest.mark.parametrize("part", ALLOWED)
def test_dependencies_point_one_way(part):
    files = [path for path in FILES if within(name_of(path), part)]
    assert files, f"{part} is gone: change this list"
    for path in files:
        for module in imports(path, inside_functions=True):
            if within(module, "bert_jax"):
                allowed = (part, *(EVERYWHERE if part not in EVERYWHERE else ()), *ALLOWED[part])
                assert within(module, *allowed), f"{name_of(path)} must not import {module}"


def test_no_part_is_forgotten():
    rest = {name_of(path) for path in FILES if not any(within(name_of(path), part) for part in ALLOWED)}
    assert rest <= {"bert_jax", "bert_jax.__main__", "bert_jax.cli", "bert_jax.cli_cluster", "bert_jax.cli_finetune",
                    "bert_jax.demo"}, rest
    for path in FILES:
        if not within(name_of(path), "bert_jax.cli", "bert_jax.__main__"):
            assert "bert_jax.cli" not in imports(path, inside_functions=True), f"{path} imports the command line"


def test_loop_knows_no_model():
    """train.py runs any Task: of models and objectives it sees nothing."""
    for name in ("train", "step", "optimizer", "record"):
        for module in imports(PACKAGE / "training" / f"{name}.py", inside_functions=True):
            allowed = name == "step" and module == "bert_jax.models.api"  # the context of sharding rules
            assert allowed or not within(module, "bert_jax.models", "bert_jax.objectives", "bert_jax.data"), (name, module)


def test_flax_only_in_models():
    for path in FILES:
        if not within(name_of(path), "bert_jax.models"):
            assert not any(within(m, "flax") for m in imports(path, inside_functions=True)), f"{path} imports flax"


def test_data_and_tokenizers_without_jax():
    """Worker processes import them: they must start fast and leave accelerators alone."""
    for path in FILES:
        if within(name_of(path), "bert_jax.data", "bert_jax.tokenizers"):
            heavy = {m for m in imports(path) if within(m, "jax", "flax", "optax", "orbax", "grain", "jaxtyping")}
            assert not heavy, f"{path} imports {heavy} at module level"


def test_nothing_needs_torch_or_tensorflow():
    for path in FILES:
        extras = ("torch", "tensorflow", "transformers", "onnx", "onnxruntime", "onnxscript", "huggingface_hub")
        heavy = {m for m in imports(path) if within(m, *extras)}
        assert not heavy, f"{path} imports {heavy} at module level"


def test_import_without_jax():
    """What the lists above say of single files, checked of the whole in a fresh interpreter."""
    import subprocess
    import sys

    code = (
        "import sys, bert_jax, bert_jax.config, bert_jax.tokenizers, bert_jax.data.prepare, bert_jax.data.pairs\n"
        "print(*sorted({'jax', 'flax', 'torch', 'tensorflow', 'grain'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.strip() == ""


def test_sizes_and_names():
    assert len((PACKAGE / "training" / "train.py").read_text().splitlines()) < 350
    for path in FILES:
        assert path.stem not in {"utils", "util", "helpers", "helper", "misc", "common"}, path
        assert len(path.read_text().splitlines()) <= 450, f"{path} is too long to be read at one sitting"
