"""Checkpoints written while the run goes on, damaged, cut, or too large for the disk: never silently used, never in the
way of older ones."""

import asyncio
import errno
import logging
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint._src.serialization import serialization

from bert_jax import checkpoint
from bert_jax.checkpoint import COMPLETE, Checkpoints, fingerprints
from bert_jax.errors import BertJaxError, CannotSave
from bert_jax.parallel.mesh import MeshConfig, make_mesh

TREE = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "deep": {"count": np.int32(7), "half": np.ones((4,), jnp.bfloat16)},
}


def abstract(tree=TREE):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)


def at(step: int):
    return {"params": jax.tree.map(lambda x: jnp.asarray(x) + jnp.asarray(step, x.dtype), TREE)}


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, at(step), {"note": step})
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def array_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold values, largest first."""
    return sorted((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: -p.stat().st_size)


def test_what_was_saved_comes_back(saved):
    restored = saved.restore({"params": abstract()})
    assert restored.step == 3 and restored.metadata["note"] == 3
    jax.tree.map(np.testing.assert_array_equal, restored.items, at(3))
    assert jax.tree.map(lambda x: x.dtype, restored.items) == jax.tree.map(lambda x: x.dtype, at(3))
    assert saved.restore({"params": abstract()}, 1).metadata["note"] == 1
    assert saved.steps() == [1, 2, 3]
    with pytest.raises(BertJaxError, match=r"no checkpoint at step 5 \(there: 1, 2, 3\)"):
        saved.restore({"params": abstract()}, 5)


def test_in_a_notebook(tmp_path):
    """Where a loop runs already, in the very thread that saves: no run in a notebook could save anything."""

    async def cell():
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
        checkpoints.save(1, at(1), {"note": 1})
        restored = checkpoints.restore({"params": abstract()})
        checkpoints.close()
        return restored

    restored = asyncio.run(cell())
    assert restored.metadata["note"] == 1
    jax.tree.map(np.testing.assert_array_equal, restored.items, at(1))


@pytest.fixture
def held(monkeypatch):
    """An event without which nothing is written: a slow disk."""
    event, write = threading.Event(), serialization.async_serialize_from_host

    async def later(*arguments, **settings):
        while not event.is_set():
            await asyncio.sleep(0.01)
        return await write(*arguments, **settings)

    monkeypatch.setattr(serialization, "async_serialize_from_host", later)
    yield event
    event.set()


def test_steps_go_on_while_a_snapshot_is_written(tmp_path, held):
    """Every array is donated to the next step and overwritten a hundred times before the first byte of it is written."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    specs = {"rows": ("fsdp",), "both": ("data", "fsdp"), "alike": (), "stack": (None, None, "fsdp")}
    shapes = {"rows": (1024, 64), "both": (512, 128), "alike": (64, 512), "stack": (3, 32, 64)}
    shardings = {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in specs.items()}
    state = {name: jax.device_put(jnp.ones(shape), shardings[name]) for name, shape in shapes.items()}
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)

    def addresses(tree):
        return {s.data.unsafe_buffer_pointer() for x in tree.values() for s in x.addressable_shards}

    state = step(state)
    checkpoints, before, own = Checkpoints(tmp_path / "checkpoints", keep=3), fingerprints(state), addresses(state)
    checkpoints.save(2, {"params": state}, {"note": "two"})
    for _ in range(100):
        state = step(state)
    assert float(state["alike"][0, 0]) == 102 and checkpoints.steps() == []
    assert addresses(state) == own  # the run keeps its memory: the snapshot has its own
    held.set()
    checkpoints.wait()
    assert checkpoints.steps() == [2]
    restored = checkpoints.restore({"params": jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )})
    assert restored.metadata["fingerprints"]["params"] == before == fingerprints(restored.items["params"])
    assert all(np.all(np.asarray(x) == 2) for x in restored.items["params"].values())
    checkpoints.close()


def test_the_snapshot_is_let_go(tmp_path):
    """Once it is on disk nothing holds it, even before anyone waits."""
    checkpoints, before = Checkpoints(tmp_path / "checkpoints", keep=3), len(jax.live_arrays())
    state = {"params": {"w": jnp.zeros((64, 64))}}
    checkpoints.save(1, state, {})
    while not checkpoints.steps():
        time.sleep(0.01)
    deadline = time.monotonic() + 20
    while len(jax.live_arrays()) > before + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(jax.live_arrays()) == before + 1
    checkpoints.close()


def test_a_save_waits_for_the_one_before(tmp_path, held):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    checkpoints.save(1, at(1), {})
    threading.Timer(0.3, held.set).start()
    checkpoints.save(2, at(2), {})
    assert 1 in checkpoints.steps()
    checkpoints.close()
    assert checkpoints.steps() == [1, 2]


def test_after_a_failed_save_the_state_of_now_is_saved(saved, monkeypatch, caplog):
    """The disk was full for a moment, and the request to stop came just then."""
    monkeypatch.setattr(checkpoint, "write_json", lambda path, content: 1 / 0)
    saved.save(4, at(4), {})
    assert saved._saving.exception() is not None  # it has ended
    monkeypatch.undo()
    saved.save(5, at(5), {})
    assert saved.steps() == [2, 3, 5], "awaited: nobody knows whether the cause has passed"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "could not save step 4" in line and line.endswith("; saving step 5 now") and "\n" not in line


@pytest.mark.parametrize("said_by", ["save", "wait", "close"])
def test_an_error_in_the_background_is_said_once(saved, said_by, monkeypatch):
    """By whatever is called next, with the last step that is good; then saving goes on."""
    monkeypatch.setattr(checkpoint, "write_json", lambda path, content: 1 / 0)
    saved.save(4, at(4), {})
    act = {"save": lambda: saved.save(5, at(5), {}), "wait": saved.wait, "close": saved.close}[said_by]
    failed = 5 if said_by == "save" else 4  # which tries again, with what there is now
    with pytest.raises(CannotSave, match=f"could not save step {failed}: .*; the last good checkpoint is step 3$"):
        act()
    monkeypatch.undo()
    assert saved.steps() == [1, 2, 3]
    saved.wait()
    if said_by != "close":
        saved.save(5, at(5), {})
        saved.wait()
        assert saved.steps() == [2, 3, 5]


def test_steps_are_numbers_and_clocks_do_not_matter(tmp_path):
    """Ten comes after nine, whatever the clocks of the hosts that wrote them said; keep means the newest by number."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (8, 9, 10):
        checkpoints.save(step, at(step), {})
        checkpoints.wait()
        for path in (tmp_path / "checkpoints" / str(step)).rglob("*"):
            os.utime(path, (1e9 - step, 1e9 - step))
    os.utime(tmp_path / "checkpoints" / "8", (4e9, 4e9))
    assert checkpoints.steps() == [8, 9, 10] and checkpoints.restore({"params": abstract()}).step == 10
    checkpoints.save(100, at(100), {})
    checkpoints.close()
    assert checkpoints.steps() == [9, 10, 100]


def test_orbax_reads_what_we_write(saved, tmp_path):
    from orbax.checkpoint import v1

    found = v1.load_checkpointables(tmp_path / "checkpoints" / "3", {"params": abstract()})
    jax.tree.map(np.testing.assert_array_equal, found, at(3))


def test_nothing_saved_yet(tmp_path):
    assert Checkpoints(tmp_path / "checkpoints", keep=1).restore({"params": abstract()}) is None


def flip(folder):
    for path in array_files(folder):
        content = bytearray(path.read_bytes())
        for place in range(len(content) // 4, len(content), max(len(content) // 8, 1)):
            content[place] ^= 0xFF
        path.write_bytes(content)


def truncate(folder):
    for path in array_files(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(folder):
    for path in array_files(folder):
        path.unlink()


def remove_item(folder):
    shutil.rmtree(folder / "params")


def remove_index(folder):
    (folder / "params" / "manifest.ocdbt").unlink()


def remove_description(folder):
    (folder / "params" / "_METADATA").unlink()


def cut_metadata(folder):
    content = (folder / COMPLETE).read_text()
    (folder / COMPLETE).write_text(content[: len(content) // 2])


def empty_metadata(folder):
    (folder / COMPLETE).write_text("{}")


@pytest.mark.parametrize(
    "damage", [flip, truncate, remove, remove_item, remove_index, remove_description, cut_metadata, empty_metadata]
)
def test_damage_falls_back_loudly(saved, tmp_path, caplog, damage):
    damage(tmp_path / "checkpoints" / "3")
    caplog.set_level(logging.WARNING, logger="bert_jax")
    restored = Checkpoints(tmp_path / "checkpoints").restore({"params": abstract()})
    assert restored.step == 2 and restored.metadata["note"] == 2
    jax.tree.map(np.testing.assert_array_equal, restored.items, at(2))
    (told,) = [r.getMessage() for r in caplog.records if r.name == "bert_jax"]
    assert "checkpoints/3 is damaged and skipped" in told and "\n" not in told
    with pytest.raises(BertJaxError, match="no readable checkpoint among steps 3"):
        Checkpoints(tmp_path / "checkpoints").restore({"params": abstract()}, 3)


def test_all_damaged_is_an_error(saved, tmp_path):
    """Starting afresh would silently throw a run away."""
    for step in (1, 2, 3):
        remove(tmp_path / "checkpoints" / str(step))
    with pytest.raises(BertJaxError, match="no readable checkpoint among steps 3, 2, 1"):
        Checkpoints(tmp_path / "checkpoints").restore({"params": abstract()})


def test_fingerprint_catches_what_storage_does_not(saved, caplog):
    """Values that changed on the way to the disk or back: the files are whole and their checksums right."""
    read = saved._handler.restore

    def tampered(folder, args):
        found = read(folder, args=args)
        if folder.parent.name == "3":
            found["w"] = found["w"].at[1, 2].add(1e-6)
        return found

    saved._handler.restore = tampered
    caplog.set_level(logging.WARNING, logger="bert_jax")
    assert saved.restore({"params": abstract()}).step == 2
    assert "params: w is not what was saved" in caplog.text


def test_fingerprint_of_every_bit_and_place():
    base = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
    original = fingerprints({"a": jnp.asarray(base)})["a"]
    for bit in range(32):
        changed = base.copy()
        changed.view(np.uint32)[1, 2, 3] ^= np.uint32(1) << np.uint32(bit)
        assert fingerprints({"a": jnp.asarray(changed)})["a"] != original, bit
    for one, other in (((0, 0, 0), (0, 0, 1)), ((0, 0, 0), (0, 1, 0)), ((0, 0, 0), (1, 0, 0)), ((0, 1, 0), (1, 0, 3))):
        swapped = base.copy()
        swapped[one], swapped[other] = base[other], base[one]
        assert fingerprints({"a": jnp.asarray(swapped)})["a"] != original, (one, other)
    for dtype in (jnp.bfloat16, jnp.int32, jnp.uint8):
        assert fingerprints({"a": jnp.asarray([1, 2], dtype)}) != fingerprints({"a": jnp.asarray([2, 1], dtype)})


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_fingerprints_do_not_depend_on_the_mesh_and_take_one_exchange(sizes):
    """Collectives in loops, beside others, make XLA:CPU's devices wait for each other for ever, once in some saves."""
    rng = np.random.default_rng(0)
    tree = {
        "stack": rng.normal(size=(3, 16, 8)).astype(np.float32), "four": rng.normal(size=(2, 16, 4, 8)).astype(np.float32),
        "half": jnp.asarray(rng.normal(size=16), jnp.bfloat16), "bytes": rng.integers(0, 255, (8, 8)).astype(np.uint8),
        "step": np.int32(7),
    }
    specs = {
        "stack": (None, "fsdp", "tensor"), "four": (None, ("fsdp", "tensor")), "half": (("data", "fsdp"),),
        "bytes": ("tensor",), "step": (),
    }
    mesh = make_mesh(MeshConfig(*sizes))
    placed = {name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*specs[name]))) for name, x in tree.items()}
    assert fingerprints(placed) == fingerprints(jax.tree.map(jnp.asarray, tree))
    everywhere = tuple((name, placed[name].sharding.spec) for name in sorted(placed))
    program = checkpoint._mesh_sums.lower(placed, mesh, everywhere).compile().as_text()
    assert re.findall(r"= \S+ ((?:all|reduce|collective)-[a-z-]+)\(", program) == ["all-reduce"]


def test_saved_again_under_the_same_step(saved):
    saved.save(3, at(30), {"note": "again"})
    saved.wait()
    assert saved.restore({"params": abstract()}).metadata["note"] == "again"
    assert saved.steps() == [1, 2, 3]


def test_a_save_that_replaces_one_fails(saved, monkeypatch):
    """The one that it was to replace is gone with it, those before are not."""
    monkeypatch.setattr(checkpoint, "write_json", lambda path, content: 1 / 0)
    saved.save(3, at(30), {})
    with pytest.raises(BertJaxError, match="the last good checkpoint is step 2$"):
        saved.wait()
    assert saved.restore({"params": abstract()}).step == 2


def test_back_from_damage_keeps_what_is_new(saved, tmp_path):
    """A run that went back past a damaged step keeps what it saves then, although the damaged one has a higher number."""
    remove(tmp_path / "checkpoints" / "3")
    again = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert again.restore({"params": abstract()}).step == 2
    again.save(2, at(20), {"note": "again"})
    again.close()
    assert Checkpoints(tmp_path / "checkpoints").restore({"params": abstract()}).metadata["note"] == "again"


def test_a_folder_without_its_last_file(saved, tmp_path, caplog):
    """A save that was cut off, or a bucket that shows its objects one by one: one line, and the one before is used."""
    (tmp_path / "checkpoints" / "3" / COMPLETE).unlink()
    (tmp_path / "checkpoints" / "4").mkdir()
    caplog.set_level(logging.WARNING, logger="bert_jax")
    reader = Checkpoints(tmp_path / "checkpoints")
    assert reader.steps() == [1, 2] and reader.restore({"params": abstract()}).step == 2
    assert not caplog.records and (tmp_path / "checkpoints" / "3").exists()  # it may be on its way: not a reader's to remove
    again = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert sorted(r.getMessage().partition("checkpoints/")[2] for r in caplog.records) == [
        "3 was not written to its end and is removed", "4 was not written to its end and is removed",
    ]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    again.save(3, at(3), {})
    again.close()
    assert again.steps() == [1, 2, 3]


KILLED = """
import asyncio, sys, time
import jax.numpy as jnp
from orbax.checkpoint._src.serialization import serialization
from bert_jax.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=3)
checkpoints.save(1, {"params": {"w": jnp.ones((8, 8)), "v": jnp.zeros(5)}}, {"note": 1})
checkpoints.wait()
write, written = serialization.async_serialize_from_host, []
async def half(*arguments, **settings):
    written.append(1)
    if len(written) > 1:
        print("under way", flush=True)
        await asyncio.sleep(60)
    return await write(*arguments, **settings)
serialization.async_serialize_from_host = half
checkpoints.save(2, {"params": {"w": jnp.ones((8, 8)), "v": jnp.zeros(5)}}, {"note": 2})
time.sleep(60)
"""


def test_killed_while_writing(tmp_path, caplog):
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "checkpoints"], stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent.parent)})
    assert process.stdout.readline() == "under way\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "checkpoints" / "2" / "params").is_dir()
    caplog.set_level(logging.WARNING, logger="bert_jax")
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    tree = {"w": np.ones((8, 8), np.float32), "v": np.zeros(5, np.float32)}
    assert checkpoints.restore({"params": abstract(tree)}).metadata["note"] == 1
    (told,) = [r.getMessage() for r in caplog.records if r.name == "bert_jax"]
    assert told.endswith("checkpoints/2 was not written to its end and is removed")
    checkpoints.close()


@pytest.mark.parametrize("other, message", [
    ({"w": ((3, 4), np.float16)}, r"3/params: w is float32\[3, 4\], float16\[3, 4\] is asked for"),
    ({"w": ((4, 3), np.float32)}, r"3/params: w is float32\[3, 4\], float32\[4, 3\] is asked for"),
    ({"u": ((2,), np.float32)}, r"3/params: u is absent, float32\[2\] is asked for"),
    ({"w": None}, r"3/params: w is float32\[3, 4\], absent is asked for"),
])
def test_what_is_asked_for_is_not_what_was_saved(saved, other, message, caplog):
    """Not damage: going back to an older one would not help, and nothing is cast, padded or left out without a word."""
    wanted = abstract()
    device = wanted["w"].sharding
    for name, form in other.items():
        wanted |= {name: form and jax.ShapeDtypeStruct(*form, sharding=device)}
    with pytest.raises(BertJaxError, match=message) as error:
        saved.restore({"params": wanted})
    assert "\n" not in str(error.value) and not caplog.records
    with pytest.raises(BertJaxError, match=r"3: it has no optimizer \(there: params\)"):
        saved.restore({"optimizer": abstract()})


def test_places_that_cannot_be_written(tmp_path):
    """Said when training starts, not at the first save."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BertJaxError, match="file/checkpoints: checkpoints cannot be written here: Not a directory$"):
        Checkpoints(tmp_path / "file" / "checkpoints", keep=1)
    assert Checkpoints(tmp_path / "nowhere").steps() == []  # a reader makes no folder
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "sealed").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path / "sealed"], capture_output=True).returncode:
        pytest.skip("mounting a read-only file system needs root")
    try:
        with pytest.raises(BertJaxError, match="sealed: checkpoints cannot be written here: Read-only file system$"):
            Checkpoints(tmp_path / "sealed", keep=1)
    finally:
        subprocess.run(["umount", "-l", tmp_path / "sealed"], check=True)


def check_refused_and_intact(checkpoints, directory, noise):
    checkpoints.save(9, {"params": {"w": noise}}, {})
    with pytest.raises(BertJaxError) as error:
        checkpoints.wait()
    assert "no space left (could not save step 9); free some" in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("; the last good checkpoint is step 1")
    assert not (directory / "9").exists()
    fresh = Checkpoints(directory)
    assert fresh.steps() == [1]
    jax.tree.map(np.testing.assert_array_equal, fresh.restore({"params": abstract()}).items, at(1))


def test_full_disk(tmp_path):
    """A file system of two megabytes, an array of four: refused in one line, what was there stays, and later it goes on."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        noise = jnp.asarray(np.random.default_rng(0).standard_normal((1024, 1024)), jnp.float32)
        checkpoints = Checkpoints(place / "checkpoints", keep=3)
        checkpoints.save(1, at(1), {})
        check_refused_and_intact(checkpoints, place / "checkpoints", noise)
        again = Checkpoints(place / "checkpoints", keep=3)
        again.save(10, at(10), {})
        again.wait()
        assert again.steps() == [1, 10] and again.restore({"params": abstract()}).step == 10
        again.close()
        checkpoints.close()
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_file_size_limit(tmp_path):
    """The same through a limit on the size of files, which needs no root."""
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((1024, 1024)), jnp.float32)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    checkpoints.save(1, at(1), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        check_refused_and_intact(checkpoints, tmp_path / "checkpoints", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = Checkpoints(tmp_path / "checkpoints", keep=3)
    again.save(10, at(10), {})
    again.wait()
    assert again.steps() == [1, 10]
    again.close()
    checkpoints.close()


@pytest.mark.parametrize(("elements", "sliced"), [(2**10, False), (2**21, True)], ids=["4 KiB", "8 MiB"])
def test_only_large_arrays_are_written_in_parts(tmp_path, monkeypatch, elements, sliced):
    """Orbax slices off what each of eight devices writes of an array that all of them have."""
    whole = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec())
    tree = {"w": jax.device_put(np.arange(elements, dtype=np.float32), whole)}
    slices, slice_in_dim = [], jax.lax.slice_in_dim
    monkeypatch.setattr(jax.lax, "slice_in_dim", lambda *given, **named: slices.append(1) or slice_in_dim(*given, **named))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(1, {"params": tree}, {})
    checkpoints.wait()
    assert bool(slices) == sliced
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)
    restored = checkpoints.restore({"params": wanted})
    np.testing.assert_array_equal(restored.items["params"]["w"], tree["w"])
    checkpoints.close()


def test_what_may_pass_is_told_from_what_lasts(saved, tmp_path, monkeypatch):
    """A network that failed for a moment is no damage: no older checkpoint is taken, and the scripts start again."""
    checkpoints, read = Checkpoints(tmp_path / "checkpoints"), Checkpoints._read

    def failing(self, step, *words):
        if step == 3:
            raise OSError(errno.EIO, "Input/output error")
        return read(self, step, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_read", failing)
        with pytest.raises(BertJaxError, match="3 could not be read, and may be whole: .*Input/output error") as error:
            checkpoints.restore({"params": abstract()})
    assert error.value.status == 74 and checkpoints.restore({"params": abstract()}).step == 3
    for number, status in ((errno.EIO, 74), (errno.EACCES, 1)):
        def refused(self, number=number):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "_claim", refused)
            with pytest.raises(BertJaxError, match="checkpoints cannot be written here") as error:
                Checkpoints(tmp_path / "checkpoints", keep=1)
        assert error.value.status == status
