"""Text that every Python installation carries: the docstrings of its standard library and of installed packages, read from
the source files without importing them. The default corpus of the demo and of the notebook."""

import ast
import importlib.util
import logging
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bert_jax.data.workers import SPAWN
from bert_jax.errors import BertJaxError
from bert_jax.progress import tracked

logger = logging.getLogger("bert_jax")

PACKAGES = ("numpy", "scipy", "jax", "flax", "optax")
SHORTEST = 40  # characters


def write_docstrings(path: Path | str, packages: Sequence[str] = PACKAGES) -> None:
    """All docstrings of the standard library and of ``packages``, each once, in the order of the sorted source files; documents
    separated by form feeds.

    Raises:
      BertJaxError: there are no source files.
    """
    path, files, seen = Path(path), [*_sources(_standard_library())], set()
    for name in packages:
        files += _sources(_package(name))
    temporary = path.with_suffix(".tmp")
    with ProcessPoolExecutor(mp_context=SPAWN) as pool, temporary.open("w", encoding="utf-8") as out:
        for texts in tracked(pool.map(_docstrings, files, chunksize=64), "reading docstrings", len(files)):
            for text in texts:
                if text not in seen:
                    seen.add(text)
                    out.write(text.replace("\f", " ") + "\n\f\n")
    if not seen:
        raise BertJaxError("found no docstrings: are the Python sources of the standard library installed?")
    temporary.replace(path)


def docstrings(package: str) -> Iterator[str]:
    """Those of one package (a name that can be imported), each once, in the order of its source files."""
    yield from dict.fromkeys(text for path in _sources(_package(package)) for text in _docstrings(path))


def _standard_library() -> list[Path]:
    return [Path(sysconfig.get_paths()["stdlib"])]


def _package(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        logger.warning("no docstrings of %s, which is not installed", name)
        return []
    return [Path(place) for place in spec.submodule_search_locations]


def _sources(roots: list[Path]) -> Iterator[Path]:
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if not {"site-packages", "test", "tests"} & set(path.relative_to(root).parts):
                yield path


def _docstrings(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and test inputs of the standard library that are no Python
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in texts if text and len(text) > SHORTEST]
