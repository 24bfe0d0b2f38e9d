"""Two real processes on one machine save, fail and restore together; other numbers of processes and devices read the same."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.checkpoint import Checkpoints, fingerprints

ROOT = pathlib.Path(__file__).parent.parent


def state(mesh: Mesh, step: int):
    """Sharded over all devices, over one axis with copies on the other, on all alike, and a scalar."""
    specs = {"w": ("data", "fsdp"), "stack": (None, None, "fsdp"), "bias": (), "count": ()}
    host = {
        "w": np.arange(16 * 24, dtype=np.float32).reshape(16, 24) + step,
        "stack": np.arange(3 * 5 * 16, dtype=np.float32).reshape(3, 5, 16) * step,
        "bias": np.full(7, step, jnp.bfloat16),
        "count": np.int32(step),
    }
    return {
        name: jax.make_array_from_callback(
            value.shape, NamedSharding(mesh, PartitionSpec(*specs[name])), lambda index, value=value: value[index]
        )
        for name, value in host.items()
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def mesh_of(data: int, fsdp: int) -> Mesh:
    return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))


def same(found, wanted) -> bool:
    """Whether the shards that lie here are equal, bit for bit."""
    return all(
        np.array_equal(a.data, b.data)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True)
    )


def worker(folder: pathlib.Path, index: int, port: str) -> None:
    """One of the two processes; prints what it saw as one line of JSON."""
    import resource
    import time

    from bert_jax import checkpoint
    from bert_jax.errors import BertJaxError

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    mesh, seen = mesh_of(2, 2), {"devices": jax.device_count()}

    def told(act) -> list:
        """The line with which it was refused and its status, and the seconds that took."""
        begun = time.monotonic()
        try:
            act()
        except BertJaxError as error:
            return [f"{error} -> {error.status}", time.monotonic() - begun]
        return ["nothing", time.monotonic() - begun]

    # Saved by one process with eight devices, read by two with two each.
    other = Checkpoints(folder / "one", keep=3)
    restored = other.restore({"params": abstract(state(mesh, 5))})
    seen["from one"] = [restored.step, restored.metadata["note"], same(restored.items["params"], state(mesh, 5))]
    other.close()

    checkpoints = Checkpoints(folder / "two", keep=2)
    seen["nothing yet"] = checkpoints.restore({"params": abstract(state(mesh, 1))}) is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"params": state(mesh, step)}, {"note": step})
    checkpoints.wait()
    seen["steps"], seen["prints"] = checkpoints.steps(), fingerprints(state(mesh, 3))

    # Process 1 alone cannot write more than a few bytes.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if index:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    checkpoints.save(4, {"params": state(mesh, 4)}, {})
    seen["full"] = told(checkpoints.wait)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    seen["after full"] = [checkpoints.steps(), sorted(p.name for p in (folder / "two").iterdir())]

    # What only process 0 does fails.
    write_json, checkpoint.write_json = checkpoint.write_json, lambda path, content: path.write_bytes(b"") / 0
    checkpoints.save(5, {"params": state(mesh, 5)}, {})
    seen["no metadata"] = told(lambda: checkpoints.save(6, {"params": state(mesh, 6)}, {}))
    checkpoint.write_json = write_json
    checkpoints.save(7, {"params": state(mesh, 7)}, {"note": 7})
    checkpoints.close()
    seen["steps in the end"] = checkpoints.steps()

    # Damage that only process 1 stumbles over: both go back to the same step.
    damaged = Checkpoints(folder / "two", keep=2)
    if index:
        read = damaged._read
        damaged._read = lambda step, *rest: read(step if step == 3 else "gone", *rest)
    restored = damaged.restore({"params": abstract(state(mesh, 3))})
    seen["went back"] = [restored.step, same(restored.items["params"], state(mesh, 3))]
    damaged.close()

    # Process 1 may not write at all: said before anything is saved.
    where = folder / "two" if index == 0 else folder / "two" / "3" / checkpoint.COMPLETE / "below a file"
    seen["no place"] = told(lambda: Checkpoints(where, keep=2))

    # A process that is gone: the other does not wait for ever.
    checkpoint._PATIENCE = 3.0
    last = Checkpoints(folder / "two", keep=2)
    if index:
        print(json.dumps(seen), flush=True)
        os._exit(0)
    seen["alone"] = told(lambda: last.save(9, {"params": state(mesh, 9)}, {}))
    print(json.dumps(seen), flush=True)
    os._exit(0)  # no farewell: jax.distributed would wait for the one that is gone


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What both processes saw, and the folder in which they worked."""
    folder = tmp_path_factory.mktemp("processes")
    one = Checkpoints(folder / "one", keep=3)
    one.save(5, {"params": state(mesh_of(4, 2), 5)}, {"note": "eight devices"})
    one.close()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2"),
    }
    running = [
        subprocess.Popen([sys.executable, __file__, folder, str(index), port], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for index in (0, 1)
    ]
    try:
        ended = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (out, err) in zip(running, ended, strict=True):
        assert process.returncode == 0 and out.strip(), err[-3000:]
    return folder, [json.loads(out.splitlines()[-1]) for out, _ in ended]


@pytest.mark.slow
def test_what_one_process_saved_two_read(seen):
    for process in seen[1]:
        assert process["devices"] == 4
        assert process["from one"] == [5, "eight devices", True]


def test_two_processes_write_one_checkpoint(seen):
    folder, processes = seen
    for process in processes:
        assert process["nothing yet"] and process["steps"] == [2, 3]
        assert process["prints"] == fingerprints(state(mesh_of(1, 1), 3))
    written = {path.name for path in (folder / "two" / "3" / "params").iterdir()}
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= written  # each wrote its own share


@pytest.mark.parametrize("shape", [(4, 2), (2, 2), (1, 4), (1, 1)])
def test_what_two_processes_saved_one_reads(seen, shape):
    """On eight, four, again four and one device."""
    wanted = state(mesh_of(*shape), 7)
    restored = Checkpoints(seen[0] / "two").restore({"params": abstract(wanted)})
    assert restored.step == 7 and restored.metadata["note"] == 7 and same(restored.items["params"], wanted)


def test_the_failure_of_one_is_the_failure_of_all(seen):
    for process in seen[1]:
        line, seconds = process["full"]
        assert "no space left (could not save step 4)" in line and "(process 1)" in line and "\n" not in line
        assert line.endswith("the last good checkpoint is step 3 -> 74") and seconds < 60
        line, seconds = process["no metadata"]
        assert "could not save step 6" in line and "(process 0)" in line and seconds < 60  # after 5, of which a warning tells
        assert process["steps in the end"] == [3, 7]
    assert seen[1][0]["after full"] == [[2, 3], ["2", "3"]]  # process 0 clears up
    assert len({process["full"][0] for process in seen[1]}) == 1


def test_all_go_back_to_the_same_step(seen):
    assert [process["went back"] for process in seen[1]] == [[3, True], [3, True]]


def test_a_host_without_permission_stops_all(seen):
    for process in seen[1]:
        line, seconds = process["no place"]
        assert "checkpoints cannot be written here: Not a directory (process 1)" in line and seconds < 60
        assert line.endswith(" -> 1"), "of all processes, so that none is started again"


def test_a_process_that_is_gone_is_not_waited_for(seen):
    line, seconds = seen[1][0]["alone"]
    assert "process 1 did not answer within 3 s" in line and seconds < 30


if __name__ == "__main__":
    worker(pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
