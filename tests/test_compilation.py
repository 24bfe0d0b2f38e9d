"""What XLA has compiled is kept between processes, from Python as from the shell, unless somebody said otherwise."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = """
import sys, jax, jax.numpy as jnp
jax.jit(lambda x: x + 1)(jnp.ones(3))  # from here on jax thinks that there is no cache
import bert_jax
bert_jax.embed(sys.argv[1], ["the cat"])
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("said", [{}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}])
def test_a_second_process_compiles_nothing(tiny_checkpoint, tmp_path, said):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | said

    def kept() -> set[str]:
        command = [sys.executable, "-c", CODE, str(tiny_checkpoint)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ("None" if said else str(tmp_path / "bert_jax" / "xla"))
        return {path.name for path in tmp_path.rglob("*-cache")}

    first = kept()
    if said:
        assert not first
    else:
        assert any("sentence_vectors" in name for name in first)
        assert kept() == first
