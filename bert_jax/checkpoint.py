"""Checkpoints written in the background by Orbax, each with fingerprints of its arrays; older ones to fall back to.

A checkpoint is a folder named by its step. Parameters and optimiser state are separate items in it, so that a reader of
parameters needs nothing of the optimiser. All processes write their own shards at once. When all have finished, process 0
merges their indexes and writes the rest (iterator state, identity, fingerprints) as one JSON file, last: a folder that has
it is complete. Nothing depends on clocks, nor on renaming folders, which a bucket without a hierarchical namespace cannot do
at once.
"""

import asyncio
import contextlib
import errno
import functools
import gc
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.errors import BertJaxError, CannotRead, CannotSave, NotHeard, lasts
from bert_jax.files import write_json
from bert_jax.parallel.agreement import SILENCE, Agreement

log = logging.getLogger("bert_jax")
T = TypeVar("T")

COMPLETE = "_CHECKPOINT_METADATA"  # Orbax's name for its own JSON, so that Orbax can read our folders too
_SLICE = 2**20  # bytes: of an array that several devices have a copy of, each writes a part, unless parts were smaller
_FOREVER = "forever: "  # begins a line for all processes about what will not pass
_FAILED = "could not be read, and may be whole: "  # begins what networks and disks cause, and no damage
_PASSING = ("Input/output error", "Stale file handle", "not connected", "UNAVAILABLE", "DEADLINE_EXCEEDED", "timed out")
_PATIENCE = 1200.0  # seconds for the slowest process to write its shards after the fastest


class Restored(NamedTuple):
    """A checkpoint as read: its step, the items asked for, and the metadata saved with them."""

    step: int
    items: dict[str, Any]
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints below ``directory``.

    With ``keep`` it belongs to the run that writes it: the newest ``keep`` checkpoints are retained, and every process of
    the run makes the same calls in the same order. Without, it is only read, by this process alone. ``last_saved``: whichever
    was saved last is retained alone, also where others have higher steps.
    """

    def __init__(self, directory: Path | str, keep: int | None = None, *, last_saved: bool = False):
        """Raises:
          BertJaxError: the directory is to be written and cannot be.
        """
        self._directory = Path(directory).resolve()
        self._keep, self._last_saved = keep, last_saved
        self._saving: Future[None] | None = None
        self._first = keep is None or jax.process_index() == 0  # says and does what only one process should
        self._peers = Agreement(_PATIENCE) if keep is not None else None
        # Compressing saves 8% of the disk, and costs two thirds more memory and several times the processor's time.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SLICE)
        self._handler = ocp.PyTreeCheckpointHandler(
            use_zarr3=True, use_compression=False,
            type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays)),
        )
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        if keep is not None:
            self._together("checkpoints cannot be written here", self._claim, refuse=True)

    def steps(self) -> list[int]:
        """Steps that were saved completely, ascending."""
        return saved_steps(self._directory)

    def save(self, step: int, items: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Takes a snapshot of ``items`` (trees of arrays), returns, and writes it with JSON ``metadata`` in the background.

        A save still under way is awaited first. The arrays may be donated as soon as this returns. A checkpoint that is
        already there under the same step is replaced. Where the save before this one failed, one warning line says so, and
        this one is awaited: the cause may have passed, and the state of now is not to be lost.

        Raises:
          CannotSave: the save before this one failed, and this one as well, or this one cannot begin (disk full, no
            permission). The earlier checkpoints are untouched.
        """
        try:
            self.wait()
            failed = False
        except CannotSave as error:  # of all processes, which agreed on it
            log.warning("%s; saving step %d now", error, step)
            failed = True
        folder = self._directory / str(step)
        self._together(f"could not save step {step}", lambda: self._make_room(folder, list(items)))
        # Dispatched before the step that may overwrite what they read; the numbers are fetched by the writer.
        prints = {name: _fingerprints(tree) for name, tree in items.items()}
        if jax.default_backend() == "cpu":  # devices of one process share a few threads: what Orbax slices off one of them
            jax.block_until_ready((items, prints))  # while others are in an all-reduce never returns
        self._saving = self._writer.submit(self._write, step, self._begin(folder, items), prints, metadata)
        if failed:
            self.wait()

    def wait(self) -> None:
        """Blocks until all that was saved is on disk. Raises BertJaxError if the last save failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Waits for the last save and ends the thread that wrote it.

        Raises:
          BertJaxError: the last save failed, and neither ``save`` nor ``wait`` has said so yet.
        """
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._handler.close()

    def restore(self, abstract: dict[str, Any], step: int | None = None, *, partial: bool = False) -> Restored | None:
        """Reads the newest checkpoint that is whole, or exactly ``step``.

        Args:
          abstract: for every item wanted, its tree of ``jax.ShapeDtypeStruct`` with shardings.
          step: read this one and no other.
          partial: top-level parts of an item that are not in ``abstract`` are left unread, instead of an error.

        Returns:
          None when there is no checkpoint at all.

        Raises:
          BertJaxError: ``step`` does not exist or is damaged, or every checkpoint is; or what was saved has other arrays,
            shapes or dtypes than ``abstract``.
        """
        self.wait()
        steps = self.steps()
        if self._peers is not None:  # the view of a shared directory may lag behind on some hosts
            steps = json.loads(self._peers.told(json.dumps(steps)))
        if step is not None and step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise BertJaxError(f"{self._directory}: no checkpoint at step {step} (there: {have})")
        candidates = [step] if step is not None else steps[::-1]
        for candidate in candidates:
            restored = self._restore(candidate, abstract, partial)
            if restored is not None:
                return restored
        if candidates:
            raise BertJaxError(f"{self._directory}: no readable checkpoint among steps {', '.join(map(str, candidates))}")
        return None

    # What is on disk

    def _folders(self) -> list[Path]:
        return _step_folders(self._directory)

    def _claim(self) -> None:
        """Shows that the directory can be written, and clears what an interrupted save left there."""
        self._directory.mkdir(parents=True, exist_ok=True)
        probe = self._directory / f".probe-{jax.process_index()}"
        probe.write_bytes(b"x")
        probe.unlink()
        if self._first:
            for folder in self._folders():
                if not _is_complete(folder):
                    log.warning("checkpoint %s was not written to its end and is removed", folder)
                    shutil.rmtree(folder, ignore_errors=True)  # what stays is in nobody's way: it is not complete

    def _make_room(self, folder: Path, items: list[str]) -> None:
        if self._first:
            _remove(folder)
            for item in items:
                (folder / item).mkdir(parents=True)

    def _retain(self, step: int) -> None:
        """Removes what is older than the newest ``keep`` up to ``step``. Later ones are damaged: the run went back to here."""
        steps = self.steps()
        for old in [s for s in steps if s != step] if self._last_saved else [s for s in steps if s <= step][: -self._keep]:
            try:
                _remove(self._directory / str(old))
            except OSError as error:
                log.warning("checkpoint %s/%d could not be removed: %s", self._directory, old, error.strerror)

    # Writing

    def _begin(self, folder: Path, items: dict[str, Any]) -> list[Any] | Exception:
        """Copies the arrays to the host and starts to write them. An error is kept for the round in which all meet."""
        try:
            return [future for name, tree in items.items() for future in _awaited(
                self._handler.async_save(epath.Path(folder / name), args=ocp.args.PyTreeSave(jax.tree.map(_own, tree)))
            )]
        except Exception as error:
            return error

    def _write(self, step: int, writing: list[Any] | Exception, prints: dict[str, Any], metadata: dict[str, Any]) -> None:
        """The background: waits for the shards of all processes, then completes the checkpoint or removes it."""
        folder, what = self._directory / str(step), f"could not save step {step}"

        def shards() -> None:
            if isinstance(writing, Exception):
                raise writing
            errors = [error for error in map(_outcome, writing) if error is not None]  # all have ended when this has
            writing.clear()  # and with them goes the snapshot
            if errors:
                raise errors[0]

        def complete() -> None:
            if self._first:
                for name in prints:
                    self._handler.finalize(epath.Path(folder / name))
                proof = {"fingerprints": jax.tree.map(int, jax.device_get(prints))}
                write_json(folder / COMPLETE, {"custom_metadata": metadata | proof})
                self._retain(step)

        try:
            self._together(what, shards)
            self._together(what, complete)
        except BertJaxError:
            if self._first:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _together(self, what: str, act: Callable[[], None], refuse: bool = False) -> None:
        """Acts on every process; when one of them fails, all raise its line. ``refuse``: as a refusal where it would last."""
        line = None
        try:
            act()
        except Exception as error:  # Orbax and tensorstore wrap the operating system's error in several types
            where = f" (process {jax.process_index()})" if jax.process_count() > 1 else ""
            good = max(self.steps(), default=None)
            line = f"{self._directory}: {_reason(what, error)}{where}"
            line += f"; the last good checkpoint is step {good}" if good is not None else ""
            line = _FOREVER + line if refuse and lasts(error) else line
        line = self._peers.failure(line)
        if line is not None:
            kind = NotHeard if line == SILENCE else BertJaxError if line.startswith(_FOREVER) else CannotSave
            raise kind(line.removeprefix(_FOREVER))

    # Reading

    def _restore(self, step: int, abstract: dict[str, Any], partial: bool) -> Restored | None:
        """None, and a warning, when the checkpoint is damaged."""
        restored, damage = None, None
        with _no_echo():
            try:
                restored = self._read(step, abstract, partial)
            except BertJaxError:
                raise  # a misfit, which is the same for all processes and no damage
            except Exception as error:  # damage shows up as whatever the layer that stumbled over it raises
                damage = " ".join(str(error).split())[:200]
                if any(word in damage for word in _PASSING):  # whatever the type: tensorstore has its own
                    damage = _FAILED + damage
            if damage is not None:
                time.sleep(0.2)  # the other arrays come to the same end
                gc.collect()
        if self._peers is not None:
            damage = self._peers.failure(damage)
        if (damage or "").startswith(_FAILED):
            raise CannotRead(f"{self._directory}/{step} {damage}")  # no reason to go back to an older one
        damage = damage or self._mismatch(restored)
        if damage is None:
            return restored
        if self._first:
            log.warning("checkpoint %s/%d is damaged and skipped: %s", self._directory, step, damage)
        return None

    def _read(self, step: int, abstract: dict[str, Any], partial: bool) -> Restored:
        folder = self._directory / str(step)
        metadata = json.loads((folder / COMPLETE).read_text())["custom_metadata"]
        items = {}
        for name, wanted in abstract.items():
            if name not in metadata["fingerprints"]:
                have = ", ".join(metadata["fingerprints"])
                raise BertJaxError(f"{folder}: it has no {name} (there: {have})")
            _check_fit(folder / name, self._handler.metadata(epath.Path(folder / name)).tree, wanted, partial)
            how = ocp.checkpoint_utils.construct_restore_args(wanted)
            args = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=partial)
            items[name] = self._handler.restore(epath.Path(folder / name), args=args)
        return Restored(step, items, metadata)

    def _mismatch(self, restored: Restored) -> str | None:
        for name, tree in restored.items.items():
            saved, found = restored.metadata["fingerprints"][name], fingerprints(tree)
            for array in found:  # as many as are in ``saved``, or a part of them that was asked for
                if found[array] != saved.get(array):
                    return f"{name}: {array} is not what was saved"
        return None


def saved_steps(directory: Path) -> list[int]:
    """Steps that were saved completely below a directory, ascending; none where it is not there."""
    return sorted(int(folder.name) for folder in _step_folders(directory) if _is_complete(folder))


def _step_folders(directory: Path) -> list[Path]:
    return [folder for folder in directory.iterdir() if folder.name.isdigit()] if directory.is_dir() else []


def fingerprints(tree: Any) -> dict[str, int]:
    """A 32-bit sum of the raw bits of every array, position-weighted: any flipped bit changes it.

    The sums do not depend on how the arrays are sharded; arrays of several processes need all of them to call this.
    """
    return jax.tree.map(int, jax.device_get(_fingerprints(tree)))


def _fingerprints(tree: Any) -> dict[str, jax.Array]:
    """On their way: computed on the devices, the same on all of them."""
    named = _named(tree)
    shardings = {name: x.sharding for name, x in named.items() if isinstance(x.sharding, NamedSharding)}
    meshes = {sharding.mesh for sharding in shardings.values()}
    if len(meshes) != 1 or next(iter(meshes)).size == 1:  # a program for each shape compiles faster than one for all arrays
        return {name: _whole_sum(x) for name, x in named.items()}
    specs = tuple((name, shardings[name].spec if name in shardings else PartitionSpec()) for name in sorted(named))
    return _mesh_sums(named, meshes.pop(), specs)


@jax.jit
def _whole_sum(x: jax.Array) -> jax.Array:
    return _sum(x, (0,) * x.ndim)


@functools.partial(jax.jit, static_argnames=("mesh", "specs"))
def _mesh_sums(
    named: dict[str, jax.Array], mesh: Mesh, specs: tuple[tuple[str, PartitionSpec], ...]
) -> dict[str, jax.Array]:
    """Every device sums what it holds, then all sums are added up at once.

    One all-reduce, and none in a loop: XLA:CPU lets a collective begin while a loop with others in it still runs, so that
    devices of one process enter them in different orders and wait for each other for ever (seen with jax 0.10.2).
    """

    def held(named: dict[str, jax.Array]) -> jax.Array:
        sums = []
        for name, spec in specs:
            x = named[name]
            axes = [() if axis is None else axis if isinstance(axis, tuple) else (axis,) for axis in spec]
            axes += [()] * (x.ndim - len(axes))
            copies = [jax.lax.axis_index(axis) for axis in mesh.axis_names if axis not in sum(axes, ())]
            starts = [jax.lax.axis_index(axis) * size if axis else 0 for axis, size in zip(axes, x.shape, strict=True)]
            first = functools.reduce(jnp.logical_and, [copy == 0 for copy in copies], jnp.bool_(True))
            sums.append(jnp.where(first, _sum(x, starts), jnp.uint32(0)))
        return jax.lax.psum(jnp.stack(sums), mesh.axis_names)

    sums = jax.shard_map(held, mesh=mesh, in_specs=(dict(specs),), out_specs=PartitionSpec())(named)
    return {name: total for (name, _), total in zip(specs, sums, strict=True)}


def _sum(x: jax.Array, starts: Sequence[int | jax.Array]) -> jax.Array:
    """Of the bits of a block of an array, each element times an odd number that differs along every axis, so that swapped
    values show as well. ``starts``: where in the array the block begins, for each axis."""
    if x.ndim > 2:  # layer by layer: the weighted bits of a whole stack would take as much memory as the stack
        sums = jax.lax.map(lambda layer: _sum(layer, starts[1:]), x)
        return jnp.sum(sums * _weights(sums.shape, 0, starts[0]), dtype=jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    bits = bits.astype(jnp.uint32)
    for axis, start in enumerate(starts):
        bits = bits * _weights(bits.shape, axis, start)
    return jnp.sum(bits, dtype=jnp.uint32)


def _weights(shape: tuple[int, ...], axis: int, start: int | jax.Array) -> jax.Array:
    """Odd numbers, one for each place along ``axis``."""
    return 2 * (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) + jnp.asarray(start, jnp.uint32)) + 1


def _named(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in
            jax.tree_util.tree_leaves_with_path(tree)}


def _own(x: jax.Array) -> jax.Array:
    """On CPU the writer reads the array's own memory, which a donating step overwrites: a copy of it.

    From an accelerator Orbax copies to the host before ``async_save`` returns, and that copy is the snapshot.
    """
    return jnp.copy(x) if next(iter(x.sharding.device_set)).platform == "cpu" else x


def _awaited(coroutine: Coroutine[Any, Any, T]) -> T:
    """What ``coroutine`` returns. In a notebook this thread has a loop that runs already, and takes no second one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _outcome(writing: Any) -> Exception | None:
    try:
        writing.result()
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def _no_echo() -> Iterator[None]:
    """Orbax closes its event loop at the first array that cannot be read; each of the others would print a traceback."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda event: None if "Event loop is closed" in str(event.exc_value) else hook(event)
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _is_complete(folder: Path) -> bool:
    return (folder / COMPLETE).is_file()


def _remove(folder: Path) -> None:
    """First that which makes it complete: whoever comes when half of it is gone shall not take it for whole."""
    if folder.exists():
        (folder / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _check_fit(folder: Path, saved: Any, wanted: Any, partial: bool) -> None:
    """Other arrays, shapes or dtypes than asked for would be padded, cast or missed without a word."""
    have, want = ({k: (str(jnp.dtype(x.dtype)), list(x.shape)) for k, x in _named(tree).items()} for tree in (saved, wanted))
    if partial:
        have = {name: x for name, x in have.items() if name.partition("/")[0] in wanted}
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            said = [f"{tree[name][0]}{tree[name][1]}" if name in tree else "absent" for tree in (have, want)]
            raise BertJaxError(f"{folder}: {name} is {said[0]}, {said[1]} is asked for: another model, optimiser or dtype")


def _reason(what: str, error: BaseException) -> str:
    seen, node = [], error
    while node is not None and len(seen) < 8:
        seen.append(node)
        node = node.__cause__ or node.__context__
    full = any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) for e in seen)
    text = " ".join((error.strerror if isinstance(error, OSError) and error.strerror else str(error)).split())
    if full or "No space left" in text or "RESOURCE_EXHAUSTED" in text or "File too large" in text:
        return f"no space left ({what}); free some and run the same command to continue"
    return f"{what}: {text[:300]}"
