"""What several processes tell each other, with threads in the place of processes and a dictionary in that of jax's store;
real processes are in tests/training/test_multihost.py."""

import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.errors import BertJaxError, CannotSave
from bert_jax.parallel import cluster as cluster_module
from bert_jax.parallel.cluster import Cluster, alone, code_hash, connect
from bert_jax.parallel.mesh import MeshConfig, batch_sharding, local_rows, make_mesh, to_devices


class Store:
    """The methods of jax's client that are used."""

    def __init__(self, count: int):
        self.rows, self.changed, self.count = {}, threading.Condition(), count
        self.barriers = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            if key in self.rows and not allow_overwrite:
                raise ValueError(f"ALREADY_EXISTS: {key}")
            self.rows[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.rows, 10), key
            return self.rows[key]

    def key_value_dir_get(self, folder):
        with self.changed:
            return [(key, value) for key, value in self.rows.items() if key.startswith(folder)]

    def wait_at_barrier(self, name, timeout_in_ms):
        with self.changed:
            barrier = self.barriers.setdefault(name, threading.Barrier(self.count))
        barrier.wait(10)


def together(count, act, store=None):
    """``act(cluster)`` in ``count`` threads; the results, or the errors, of all of them."""
    store, results = store or Store(count), [None] * count

    def run(index):
        try:
            results[index] = act(Cluster(store, index, count))
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def test_equal_facts_pass():
    assert together(3, lambda c: c.agree("experiment", {"train": {"steps": 3}, "init": None})) == [None] * 3


def test_the_same_is_compared_again_by_a_second_run():
    """As by fine-tunings one after another: what the first one said is not what the second one reads."""
    def act(c):
        c.agree("data", {"digest": "one"})
        c._meet = lambda where: None
        c.agree("data", {"digest": "two" if c.index == 0 else "three"})

    first, second = together(2, act)
    assert first is None and str(second).endswith(": digest is two there, three here")


def test_the_process_that_differs_is_named():
    def act(c):
        c._meet = lambda where: None  # process 0 would wait for the other one, and be ended by the thread that watches
        c.agree("experiment", {"train": {"batch_size": 32 if c.index == 1 else 16, "steps": 4}})

    first, second = together(2, act)
    assert first is None
    assert isinstance(second, BertJaxError) and "\n" not in str(second)
    assert str(second).startswith("another experiment than process 0 on ")
    assert str(second).endswith(": train.batch_size is 16 there, 32 here")


def begun(count, act=lambda c: None):
    """Clusters after their introductions, their thread of the signs of life ended."""
    def run(c):
        act(c)
        c.begin()
        c._over.set()
        return c

    return together(count, run)


def test_one_process_of_a_machine_checks_its_data(monkeypatch):
    machines = iter(["a", "b", "a", "b"])
    lock = threading.Lock()

    def machine():
        with lock:
            return next(machines)

    monkeypatch.setattr(cluster_module, "_machine", machine)
    clusters = begun(4)
    assert sum(c.first_on_host for c in clusters) == 2 and clusters[0].first_on_host
    assert all(len(c.hosts) == 4 for c in clusters)


def test_clocks_that_differ_are_mentioned(monkeypatch, caplog):
    here, real = threading.local(), time.time
    monkeypatch.setattr(cluster_module.time, "time", lambda: real() + getattr(here, "ahead", 0))
    begun(2, lambda c: setattr(here, "ahead", 3600 * c.index))
    lines = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert len(lines) == 1 and "+3600 s from that of process 0" in lines[0]
    caplog.clear()
    begun(2, lambda c: setattr(here, "ahead", 0))
    assert "clock" not in caplog.text


@pytest.fixture
def ended(monkeypatch):
    """Status and line of every process that would have ended; the thread that ends is stopped by an exception."""
    ends = []

    class Ended(BaseException):
        pass

    def end(self, status, line):
        ends.append((self.index, status, line))
        self._over.set()
        raise Ended

    monkeypatch.setattr(Cluster, "_end", end)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    monkeypatch.setattr(cluster_module, "PULSE_SECONDS", 0.01)
    monkeypatch.setattr(cluster_module, "SILENCE_SECONDS", 0.3)
    return ends


def until(condition):
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_silent_process_is_noticed_by_process_0(ended):
    store = Store(3)
    clusters = [Cluster(store, index, 3) for index in range(3)]
    for c in clusters[:2]:  # the third never gives a sign of life
        threading.Thread(target=c._live, daemon=True).start()
    until(lambda: ended)
    assert ended[0][:2] == (0, 75) and "process 2 on" in ended[0][2] and "no sign of life" in ended[0][2]
    clusters[1]._over.set()


def test_a_process_that_has_left_is_not_missed(ended):
    store = Store(2)
    store.key_value_set("bert_jax/cluster/alive/1", "left")
    first = Cluster(store, 0, 2)
    threading.Thread(target=first._live, daemon=True).start()
    time.sleep(0.6)
    first._over.set()
    assert not ended


def test_a_refusal_ends_the_others_with_its_reason(ended):
    store = Store(2)
    store.key_value_set("bert_jax/cluster/ended/0", json.dumps({"status": 1, "by": "process 1 on b", "reason": "no such file"}))
    threading.Thread(target=Cluster(store, 0, 2)._live, daemon=True).start()
    until(lambda: ended)
    assert ended == [(0, 1, "ended, because process 1 on b did: no such file")]


def test_a_store_that_is_gone_means_process_0(ended):
    store = Store(2)

    def gone(*_, **__):
        raise RuntimeError("UNAVAILABLE: failed to connect to all addresses")

    store.key_value_set = gone
    threading.Thread(target=Cluster(store, 1, 2)._live, daemon=True).start()
    until(lambda: ended)
    assert ended[0][:2] == (1, 75) and "process 0 on" in ended[0][2] and "is lost" in ended[0][2]


def test_errors_are_told_from_symptoms(monkeypatch, capsys):
    monkeypatch.setattr(cluster_module, "PULSE_SECONDS", 0.0)
    monkeypatch.setattr(cluster_module, "SILENCE_SECONDS", -5.0)
    c = Cluster(Store(2), 1, 2)
    assert c._diagnose(BertJaxError("loss nan")) == (1, "loss nan")
    status, line = c._diagnose(ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset\nby peer"))
    assert status == 75 and line.startswith("a peer is lost: UNKNOWN: Gloo") and "\n" not in line
    wrapped = BertJaxError("could not save step 5")
    wrapped.__cause__ = RuntimeError("UNAVAILABLE: Socket closed")
    assert c._diagnose(wrapped)[0] == 75
    assert c._diagnose(BertJaxError("process 1 did not answer"))[0] == 1  # nobody knew of a peer that is gone
    assert capsys.readouterr().err == ""
    status, line = c._diagnose(RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"))
    assert status == 1 and line.startswith("the memory of the device does not suffice") and "\n" not in line
    assert capsys.readouterr().err == ""
    assert c._diagnose(KeyError("x")) == (70, "KeyError: 'x'")
    assert c._diagnose(OSError(5, "I/O error"))[0] == c._diagnose(CannotSave("could not save step 5"))[0] == 74
    assert c._diagnose(PermissionError(13, "denied"))[0] == 1, "starting again would not help"
    assert "KeyError" in capsys.readouterr().err, "what nobody expected is printed whole"


def test_alone_everything_is_trivial():
    c = Cluster()
    c.agree("anything", {"a": object()})
    assert c.first and c.first_on_host and c.from_first(lambda: 5) == 5
    with pytest.raises(KeyError), c.ending_together():
        raise KeyError


def test_signals_become_requests():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        c = Cluster()
        with c.heeding_signals():
            assert not c.stop_at(1)
            os.kill(os.getpid(), number)
            assert c.stop_at(2) and c.stop_at(3)
    with c.heeding_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_the_service_that_agrees_on_a_stop_counts_from_0(monkeypatch):
    """Else a run that goes on, and is told to stop while it starts, would have passed the number on which it settles."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda number: asked.append(number) or False)
    c = Cluster(object(), 0, 2)
    assert not c.stop_at(5000) and not c.stop_at(5001) and asked == [0, 1]


def test_a_stop_that_was_agreed_on_holds_for_the_next_run(monkeypatch):
    """The service says so once, perhaps at the last step of a seed."""
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda number: number == 1)
    c = Cluster(object(), 0, 2)
    assert [c.stop_at(step) for step in (7, 8, 0, 1)] == [False, True, True, True]


@pytest.mark.parametrize(("variables", "words"), [
    ({"TPU_WORKER_HOSTNAMES": "t1k-w-0,t1k-w-1,t1k-w-2,t1k-w-3"}, "one of 4 hosts of a TPU slice"),
    ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, "has 8 tasks"),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "SLURM_NTASKS": "1"}, None),
])
def test_one_of_many_started_alone(monkeypatch, caplog, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with alone() as c:
        assert c.count == 1
    assert (words in caplog.text and "--distributed" in caplog.text) if words else not caplog.text


@pytest.mark.parametrize(("arguments", "words"), [
    (("10.0.0.1:80", None, None), "belong together"),
    ((None, 2, 0), "belong together"),
    (("10.0.0.1", 2, 0), "must be HOST:PORT"),
    (("10.0.0.1:port", 2, 0), "must be HOST:PORT"),
    (("10.0.0.1:70000", 2, 0), "must be HOST:PORT"),
    (("10.0.0.1:80", 2, 2), "there are 2 processes, counted from 0"),
])
def test_arguments_that_describe_no_cluster(arguments, words):
    with pytest.raises(BertJaxError, match=words), connect(*arguments):
        pass


class Sharding:
    """The share of one process in a batch split into 8, by the shards that its devices hold."""

    def __init__(self, *shards):
        self.shards = shards

    def addressable_devices_indices_map(self, shape):
        size = shape[0] // 8
        return {n: (slice(s * size, (s + 1) * size),) for n, s in enumerate(self.shards)}


def test_rows_follow_from_where_devices_lie():
    np.testing.assert_array_equal(local_rows(Sharding(2, 3), 16), [4, 5, 6, 7])
    np.testing.assert_array_equal(local_rows(Sharding(5, 1), 16), [2, 3, 10, 11])  # not side by side, not in order
    np.testing.assert_array_equal(local_rows(Sharding(1, 1, 1, 1), 16), [2, 3])  # tensor parallelism: the same rows
    for sizes in ((8, 1, 1), (2, 2, 2), (1, 1, 8)):
        sharding = batch_sharding(make_mesh(MeshConfig(*sizes)))
        np.testing.assert_array_equal(local_rows(sharding, 16), np.arange(16))
    whole = NamedSharding(make_mesh(MeshConfig()), PartitionSpec())
    np.testing.assert_array_equal(local_rows(whole, 3), np.arange(3))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_rows_come_back_as_the_batch(sizes):
    mesh = make_mesh(MeshConfig(*sizes))
    batch = {"input_ids": np.arange(48).reshape(16, 3), "label": np.arange(16)}
    placed = to_devices(batch, mesh)
    for name, rows in batch.items():
        np.testing.assert_array_equal(placed[name], rows)
        assert placed[name].sharding == batch_sharding(mesh)


def test_the_hash_is_that_of_the_code(tmp_path, monkeypatch):
    assert code_hash() == code_hash() and len(code_hash()) == 16
    package = tmp_path / "package"
    (package / "parallel").mkdir(parents=True)
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(cluster_module, "__file__", str(package / "parallel" / "cluster.py"))
    before = code_hash()
    (package / "a.py").write_text("x = 2\n")
    assert code_hash() != before
    (package / "a.py").rename(package / "b.py")
    (package / "b.py").write_text("x = 1\n")
    assert code_hash() != before, "a file of another name is other code"


def test_jax_still_has_what_is_used():
    """Private names: a new version of jax without them fails here first."""
    client = cluster_module.distributed._jax.DistributedRuntimeClient
    for name in ("key_value_set", "blocking_key_value_get", "key_value_dir_get", "wait_at_barrier"):
        assert hasattr(client, name), name
    assert callable(cluster_module.lib.utils.absl_set_min_log_level)
    assert hasattr(cluster_module.distributed.global_state, "coordinator_address") and jax.process_count() == 1
