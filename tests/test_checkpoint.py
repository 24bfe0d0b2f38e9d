"""Checkpoints that are damaged, cut, or do not fit on the disk: never silently used, never in the way of older ones."""

import logging
import pathlib
import resource
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.checkpoint import Checkpoints, fingerprints
from bert_jax.errors import BertJaxError

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


@pytest.mark.parametrize("damage", [flip, truncate, remove, remove_item])
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
    read = saved._manager.load_checkpointables

    def tampered(step, items):
        found = read(step, items)
        if step == 3:
            found["params"]["w"] = found["params"]["w"].at[1, 2].add(1e-6)
        return found

    saved._manager.load_checkpointables = tampered
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


def test_saved_again_under_the_same_step(saved):
    saved.save(3, at(30), {"note": "again"})
    assert saved.restore({"params": abstract()}).metadata["note"] == "again"
    assert saved.steps() == [1, 2, 3]


def check_refused_and_intact(checkpoints, directory, noise):
    with pytest.raises(BertJaxError) as error:
        checkpoints.save(9, {"params": {"w": noise}}, {})
    assert "no space left while saving step 9" in str(error.value) and "\n" not in str(error.value)
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
    assert again.steps() == [1, 10]
    again.close()
    checkpoints.close()
