"""Programs that XLA has compiled, kept on disk between processes."""

import contextlib
import functools
import logging
import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

log = logging.getLogger("bert_jax")


@functools.cache
def keep_programs() -> None:
    """What compiles for a second or longer is kept in ``bert_jax/xla`` of the user's cache, for the next process; every verb
    that computes calls this. Whoever told jax of another place (JAX_COMPILATION_CACHE_DIR, ``jax_compilation_cache_dir``), or
    to keep nothing (JAX_ENABLE_COMPILATION_CACHE=false), is left alone."""
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bert_jax" / "xla"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        log.warning(
            "%s cannot be written: compiled programs are not kept (JAX_COMPILATION_CACHE_DIR names another place)", folder
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()  # whatever was compiled in this process before has found that there is none
