"""Checkpoints: Orbax behind one small class, with a fingerprint per array and a fall-back to older checkpoints.

Parameters and optimiser state are separate items, so that a reader of parameters needs nothing of the optimiser. The rest
(iterator state, identity, fingerprints) is JSON metadata of the same step, written in the same atomic rename.
"""

import errno
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from bert_jax.errors import BertJaxError

log = logging.getLogger("bert_jax")


class Restored(NamedTuple):
    """A checkpoint as read: its step, the items asked for, and the metadata saved with them."""

    step: int
    items: dict[str, Any]
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints below ``directory``, the newest ``keep`` of them retained."""

    def __init__(self, directory: Path | str, keep: int | None = None):
        self._directory = Path(directory).resolve()
        self._failed = False
        policy = None if keep is None else ocp.training.preservation_policies.LatestN(keep)
        self._manager = ocp.training.Checkpointer(
            self._directory, preservation_policy=policy, cleanup_tmp_directories=keep is not None
        )

    def steps(self) -> list[int]:
        """Steps that were saved completely, ascending."""
        return sorted(checkpoint.step for checkpoint in self._manager.checkpoints)

    def save(self, step: int, items: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Writes ``items`` (trees of arrays) and JSON ``metadata`` as one atomic checkpoint.

        Raises:
          BertJaxError: the disk is full or the target cannot be written; the earlier checkpoints are untouched.
        """
        prints = {name: fingerprints(tree) for name, tree in items.items()}
        try:
            self._manager.save_checkpointables(
                step, items, force=True, overwrite=True, custom_metadata=metadata | {"fingerprints": prints}
            )
        except Exception as error:  # Orbax and tensorstore wrap the operating system's error in several types
            self._failed = True
            raise BertJaxError(_save_error(self._directory, step, error)) from error

    def restore(self, abstract: dict[str, Any], step: int | None = None) -> Restored | None:
        """Reads the newest checkpoint that is whole, or exactly ``step``.

        Args:
          abstract: for every item wanted, its tree of ``jax.ShapeDtypeStruct`` with shardings.
          step: read this one and no other.

        Returns:
          None when there is no checkpoint at all.

        Raises:
          BertJaxError: ``step`` does not exist or is damaged, or every checkpoint is.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise BertJaxError(f"{self._directory}: no checkpoint at step {step} (there: {have})")
        candidates = [step] if step is not None else steps[::-1]
        for candidate in candidates:
            try:
                return self._read(candidate, abstract)
            except Exception as error:  # damage shows up as whatever the layer that stumbled over it raises
                reason = " ".join(str(error).split())[:200]
                log.warning("checkpoint %s/%d is damaged and skipped: %s", self._directory, candidate, reason)
        if candidates:
            raise BertJaxError(f"{self._directory}: no readable checkpoint among steps {', '.join(map(str, candidates))}")
        return None

    def _read(self, step: int, abstract: dict[str, Any]) -> Restored:
        metadata = self._manager.checkpointables_metadata(step).custom_metadata
        items = self._manager.load_checkpointables(step, abstract)
        for name, tree in items.items():
            saved, found = metadata["fingerprints"][name], fingerprints(tree)
            if saved != found:
                bad = next((k for k in saved if found.get(k) != saved[k]), "an array that was not saved")
                raise ValueError(f"{name}: {bad} is not what was saved")
        return Restored(step, items, metadata)

    def close(self) -> None:
        """Ends the background threads of Orbax."""
        try:
            self._manager.close()
        except Exception:
            if not self._failed:  # Orbax raises a failed save once more, which would hide the line that ``save`` gave it
                raise


def fingerprints(tree: Any) -> dict[str, int]:
    """A 32-bit sum of the raw bits of every array, position-weighted: any flipped bit changes it."""
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in
             jax.tree_util.tree_leaves_with_path(tree)}
    return {name: int(value) for name, value in jax.device_get(_fingerprints(named)).items()}


@jax.jit
def _fingerprints(named: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def one(x):
        if x.ndim > 2:  # layer by layer: the weighted bits of a whole stack would take as much memory as the stack
            sums = jax.lax.map(one, x)
            return jnp.sum(sums * (2 * jnp.arange(len(sums), dtype=jnp.uint32) + 1), dtype=jnp.uint32)
        bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
        bits = bits.astype(jnp.uint32)
        # Weight each element by an odd number that differs along every axis, so that swapped values show as well.
        for axis in range(bits.ndim):
            place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            bits = bits * (2 * place + 1)
        return jnp.sum(bits, dtype=jnp.uint32)

    return {name: one(x) for name, x in named.items()}


def _save_error(directory: Path, step: int, error: BaseException) -> str:
    seen, node = [], error
    while node is not None and len(seen) < 8:
        seen.append(node)
        node = node.__cause__ or node.__context__
    full = any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) for e in seen)
    text = " ".join(str(error).split())
    if full or "No space left" in text or "RESOURCE_EXHAUSTED" in text or "File too large" in text:
        return f"{directory}: no space left while saving step {step}; free some and run the same command to continue"
    return f"{directory}: could not save step {step}: {text[:300]}"
