"""Several processes as one run: start-up, agreement on what is run, stopping together, and the loss of one of them.

A process that dies takes the others with it, sooner or later: a collective fails (gloo), hangs (TPU), or jax's coordination
service aborts them (exit status 134). Here they learn of it first. Every process gives a sign of life through the key-value
store of ``jax.distributed``; process 0, which keeps the store, watches the others, and the others see when the store is gone.
A process that ends before its time writes the reason there, and its peers end with the same status and that reason.

Ages are measured on the clock of the process that waits: no two clocks are ever compared, except to warn when they differ.
"""

import contextlib
import ctypes
import hashlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax._src import distributed, lib  # the key-value store, the address and the level of jaxlib's log have no public name
from jax.experimental import multihost_utils

from bert_jax.config import differences
from bert_jax.errors import BertJaxError, exit_status, out_of_memory
from bert_jax.parallel.agreement import Agreement
from bert_jax.progress import Progress

log = logging.getLogger("bert_jax.cluster")

TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h: the same command continues
START_SECONDS = 180.0  # for all processes to come; containers on many hosts do not start at once
SILENCE_SECONDS = 30.0  # without a sign of life, a process is taken for dead
PULSE_SECONDS = 1.0
PATIENCE = 6 * 3600.0  # for what a healthy peer does meanwhile: checking a large store, reading a large checkpoint
CLOCK_SECONDS = 5.0  # by which clocks may differ before it is mentioned
OWN_WORDS = "TF_CPP_MIN_LOG_LEVEL=0 shows jax's own words"
_ROOT = "bert_jax/cluster/"
# What runtimes say when a connection or a peer has gone; the first two are proof, the others may have other causes.
_SYMPTOMS = ("Gloo", "Socket closed", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination service", "did not answer", "NCCL")


class Cluster:
    """This process among ``count``. Without arguments: one process, alone, for which all of this is trivial.

    Attributes:
      index, count: of this process, and of all.
      first: whether this is process 0, which writes what is written once.
      first_on_host: whether no process with a smaller index runs on this machine.
    """

    def __init__(self, client: Any = None, index: int = 0, count: int = 1):
        self.index, self.count = index, count
        self.first = index == 0
        self.first_on_host = True
        self.hosts = [socket.gethostname()] * count
        self._client = client
        self._agreement: Agreement | None = None
        self._over = threading.Event()  # ending in good order
        self._ending = threading.Lock()  # taken, and never given back, by the thread that ends this process
        self._stop = self._agreed = False  # a request to stop has come here; all have agreed on one
        self._asked = itertools.count()  # times that a stop was asked about
        self._compared = itertools.count()  # times that facts were
        self._heard = time.monotonic()  # when the store last answered

    @property
    def name(self) -> str:
        return self._name(self.index)

    def agree(self, what: str, facts: dict[str, Any]) -> None:
        """Compares JSON ``facts`` with those of process 0, called ``what`` in the message; waits for all processes.

        Raises:
          BertJaxError: they differ; the first difference, and whose it is.
        """
        if self.count == 1:
            return
        place = f"facts/{next(self._compared)}"  # of its own: a second run in these processes compares the same again
        self._put(f"{place}/{self.index}", json.dumps(facts))
        theirs, ours = (json.loads(self._get(f"{place}/{index}")) for index in (0, self.index))
        for path, there, here in differences(theirs, ours):
            raise BertJaxError(f"another {what} than {self._name(0)}: {path} is {there} there, {here} here")
        self._meet(f"{place}, agreed")

    def agree_on_devices(self) -> None:
        """Raises BertJaxError where process 0 has others, or another number of them."""
        devices = jax.local_devices()
        self.agree("machine", {"kind of device": devices[0].device_kind, "number of devices": len(devices)})

    def from_first(self, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns on process 0, as JSON; the others wait for it, and do not compute."""
        if self.count == 1:
            return compute()
        self._agreement = self._agreement or Agreement(PATIENCE)
        return json.loads(self._agreement.told(json.dumps(compute()) if self.first else ""))

    def stop_at(self, step: int) -> bool:
        """Whether a request to stop has come that all processes heed at this ``step``. To be asked at every step, once.

        Several processes agree on a step that none of them has passed, through jax's preemption service. It waits for
        SIGTERM, which is also what a maintenance notice becomes on GKE and on a TPU VM that is shut down.
        """
        # By how often it was asked, not by the step: the service counts from 0, and where SIGTERM comes before the first time
        # it settles on 1, which the steps of a run that goes on have passed. It says so once, which may be at the last step of
        # one of several runs: it holds for the next one.
        if self.count > 1 and not self._agreed:
            self._agreed = multihost_utils.reached_preemption_sync_point(next(self._asked))
        return self._agreed if self.count > 1 else self._stop

    @contextlib.contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT become requests to stop; the second SIGINT interrupts as usual."""
        interrupted = False

        def request(number, frame):
            nonlocal interrupted
            if interrupted and number == signal.SIGINT:
                raise KeyboardInterrupt
            interrupted = number == signal.SIGINT
            self._stop = True
            if self.count > 1:
                os.kill(os.getpid(), signal.SIGTERM)  # jax tells the others

        before = {}
        with contextlib.suppress(ValueError):  # not the main thread: signals are not ours to handle
            for number in (signal.SIGINT,) if self.count > 1 else (signal.SIGINT, signal.SIGTERM):  # SIGTERM: jax's handler
                before[number] = signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """An exception inside ends all processes of a cluster at once, before anything here waits for the others."""
        try:
            yield
        except BaseException as error:
            if self.count > 1:
                self._end(*self._diagnose(error))
            raise

    # The other processes

    def _name(self, index: int) -> str:
        return f"process {index} on {self.hosts[index]}"

    def _put(self, key: str, value: str, overwrite: bool = False) -> None:
        self._client.key_value_set(_ROOT + key, value, allow_overwrite=overwrite)

    def _get(self, key: str) -> str:
        return self._client.blocking_key_value_get(_ROOT + key, int(1000 * PATIENCE))

    def _meet(self, where: str) -> None:
        self._client.wait_at_barrier(_ROOT + where, int(1000 * PATIENCE))

    def _rows(self, folder: str) -> dict[int, str]:
        return {int(key.rsplit("/", 1)[1]): value for key, value in self._client.key_value_dir_get(_ROOT + folder)}

    def begin(self) -> None:
        """Learns who is where, compares versions and code, and starts to give signs of life."""
        self._put(f"host/{self.index}", json.dumps([socket.gethostname(), _machine()]))
        threading.Thread(target=self._live, name="signs of life", daemon=True).start()
        self._meet("hosts")
        hosts = {index: json.loads(row) for index, row in self._rows("host/").items()}
        self.hosts = [hosts[index][0] for index in range(self.count)]
        machines = [hosts[index][1] for index in range(self.count)]
        self.first_on_host = machines.index(machines[self.index]) == self.index
        self._put(f"clock/{self.index}", str(time.time()))  # just after the meeting, so at about the same time everywhere
        apart = float(self._get(f"clock/{self.index}")) - float(self._get("clock/0"))
        if abs(apart) > CLOCK_SECONDS:
            log.warning("the clock here is %+.0f s from that of %s: training does not mind, logs will", apart, self._name(0))
        self.agree("software", {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "hash of bert_jax's code": code_hash()})

    def finish(self) -> None:
        """Leaves in good order, together with the others."""
        self._over.set()
        with contextlib.suppress(Exception):  # a peer that failed after its work was done
            self._put(f"alive/{self.index}", "left", overwrite=True)
            jax.distributed.shutdown()

    def _live(self) -> None:
        """The thread of the signs of life: gives ours, looks for the others', ends the process when one is missing."""
        seen: dict[int, tuple[str, float]] = {}
        beat = 0
        while not self._over.wait(PULSE_SECONDS):
            beat += 1
            try:
                self._put(f"alive/{self.index}", str(beat), overwrite=True)
                reason = self._rows("ended/").get(0)
                pulses = self._rows("alive/") if self.first else {}
            except Exception as error:  # of jaxlib, whose types differ between versions
                if "UNAVAILABLE" in str(error) or time.monotonic() - self._heard > SILENCE_SECONDS:
                    self._end(TEMPORARY, f"{self._name(0)} is lost")
                continue
            heard = self._heard = time.monotonic()
            if reason is not None and not self._over.is_set():
                ended = json.loads(reason)
                self._end(ended["status"], f"ended, because {ended['by']} did: {ended['reason']}")
            for index in range(self.count):
                before = seen.get(index, ("", heard))
                pulse = pulses.get(index, "")
                seen[index] = (pulse, heard if pulse != before[0] else before[1])
                if self.first and pulse != "left" and heard - seen[index][1] > SILENCE_SECONDS:
                    self._end(TEMPORARY, f"{self._name(index)} is lost: no sign of life for {SILENCE_SECONDS:.0f} s")

    def _diagnose(self, error: BaseException) -> tuple[int, str]:
        """Exit status and line for an exception, which may only be the sign of another process's end."""
        if isinstance(error, KeyboardInterrupt):
            return 130, "interrupted"
        chain, node = [], error
        while node is not None and len(chain) < 8:
            chain.append(" ".join(str(node).split()))
            node = node.__cause__ or node.__context__
        symptom = next((text for text in chain if any(word in text for word in _SYMPTOMS)), None)
        if symptom is not None:
            proof = any(word in symptom for word in _SYMPTOMS[:2])
            time.sleep(3 * PULSE_SECONDS if proof else SILENCE_SECONDS + 5)  # the other thread may know more, and end this
            if proof:
                return TEMPORARY, f"a peer is lost: {symptom[:200]}"
        if isinstance(error, BertJaxError):
            return exit_status(error), str(error)
        if line := out_of_memory(error):
            return 1, line
        traceback.print_exception(error)
        return exit_status(error), f"{type(error).__name__}: {chain[0][:300]}"

    def _end(self, status: int, line: str) -> None:
        """Tells the others why, says so, and ends this process. Threads and pending collectives are not waited for."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # another thread is about to end this process
        with contextlib.suppress(Exception):  # the store may be gone, or somebody else was first
            self._put("ended/0", json.dumps({"status": status, "by": self.name, "reason": line}))
        again = "; the same command continues" if status == TEMPORARY else ""
        print(f"bert-jax: error: {self.name}: {line}{again}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            self._put(f"alive/{self.index}", "left", overwrite=True)
            deadline = time.monotonic() + 5 * PULSE_SECONDS
            while self.first and time.monotonic() < deadline:  # without process 0 nobody could read the reason
                if all(self._rows("alive/").get(index) == "left" for index in range(self.count)):
                    break
                time.sleep(PULSE_SECONDS / 5)
        sys.stdout.flush()
        os._exit(status)

    def aborted(self, address: str) -> None:
        """jax or XLA is about to abort this process: says why, if it is the end of another process that is behind it.

        Nothing here may ask the store: the thread that aborts holds the locks of its client.
        """
        if self._over.is_set():  # all work is done
            os._exit(0)
        for _ in range(12):  # the other thread may find the reason, and end this process
            lost = not self.first and _unreachable(address) is not None
            if lost:
                break
            time.sleep(PULSE_SECONDS)
        lost = lost or time.monotonic() - self._heard > 8 * PULSE_SECONDS
        line = f"{self._name(0)} is lost; the same command continues" if lost else f"jax or XLA aborts; {OWN_WORDS}"
        print(f"bert-jax: error: {self.name}: {line}", file=sys.stderr, flush=True)
        if lost:
            os._exit(TEMPORARY)


def checked(cluster: Cluster | None) -> Cluster:
    """``cluster``, or this process alone where there is none.

    Raises:
      BertJaxError: jax has another number of processes.
    """
    cluster = cluster or Cluster()
    if cluster.count != jax.process_count():
        raise BertJaxError(f"jax has {jax.process_count()} processes, this one was told of {cluster.count}: give the cluster "
                           "of bert_jax.parallel.cluster.connect, which starts them")
    return cluster


@contextlib.contextmanager
def connect(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> Iterator[Cluster]:
    """Joins the processes of a run for the length of a ``with`` block, whose exceptions end all of them.

    Without arguments they are found as Cloud TPU, GKE, SLURM or Open MPI describe them. On CPU the collectives are gloo's.

    Args:
      coordinator: HOST:PORT of process 0. processes, process: how many, and which this is.

    Raises:
      BertJaxError: no cluster is found, or the arguments do not describe one. Where not all processes come within
        START_SECONDS there is nothing to return to: a line is printed, and the process ends with TEMPORARY.
    """
    if coordinator is not None or processes is not None or process is not None:
        _check_arguments(coordinator, processes, process)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The end of a peer makes jaxlib print a page; it is said in a line here.
    lib.utils.absl_set_min_log_level(0 if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0" else 4)
    cluster, state = None, distributed.global_state
    handler = _on_abort(lambda: cluster.aborted(state.coordinator_address) if cluster else _refused())
    late = threading.Timer(START_SECONDS, _nobody_came, (coordinator, processes, process))
    late.daemon = True
    late.start()
    try:
        # jax gives up, by aborting, well after the timer above and the signs of life have had their say.
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=int(START_SECONDS) + 30,
            heartbeat_timeout_seconds=int(SILENCE_SECONDS) + 20, shutdown_timeout_seconds=120,
        )
    except Exception as error:
        raise BertJaxError(_start_error(coordinator, error)) from error
    finally:
        late.cancel()
    cluster = Cluster(state.client, state.process_id, state.num_processes)
    _warn_of_idle_gpus()
    _prefix_logs(cluster)
    with cluster.ending_together():
        if cluster.count > 1:
            cluster.begin()
        yield cluster
    cluster.finish()
    del handler  # kept until here: C holds its address


@contextlib.contextmanager
def alone() -> Iterator[Cluster]:
    """A run of one process. Warns when it looks like one of several that were not asked to work together."""
    hosts = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(","))
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if hosts > 1:
        log.warning("this is one of %d hosts of a TPU slice, started alone: start all of them with --distributed", hosts)
    elif tasks.isdigit() and int(tasks) > 1:
        log.warning("this SLURM job has %s tasks, and this process works alone: start it with srun and --distributed", tasks)
    yield Cluster()


def _warn_of_idle_gpus() -> None:
    """jax gives a task of SLURM the one GPU of its number, however many there are."""
    gpus, tasks = os.environ.get("SLURM_GPUS_ON_NODE", ""), os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
    if gpus.isdigit() and tasks.isdigit() and jax.default_backend() == "gpu":
        used = int(tasks) * jax.local_device_count()
        if used < int(gpus):
            log.warning("%d of the %s GPUs of this machine work: give srun a task for each (--ntasks-per-node=%s)", used, gpus,
                        gpus)


def code_hash() -> str:
    """blake2b of every source file of the package, 8 bytes in hex."""
    package, state = Path(__file__).parents[1], hashlib.blake2b(digest_size=8)
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        state.update(f"{path.relative_to(package).as_posix()} {len(content)} ".encode() + content)
    return state.hexdigest()


def _machine() -> str:
    """The same on all processes of a machine, containers included, and on no other machine."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


def _check_arguments(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator is None or processes is None or process is None:
        raise BertJaxError("--coordinator HOST:PORT, --processes N and --process I belong together: give all three, or "
                           "--distributed alone where Cloud TPU, GKE, SLURM or Open MPI describe the cluster")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BertJaxError(f"--coordinator {coordinator}: it must be HOST:PORT of process 0, as in 10.0.0.2:8476")
    if not 0 <= process < processes:
        raise BertJaxError(f"--process {process}: there are {processes} processes, counted from 0")


def _start_error(coordinator: str | None, error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, ValueError) and coordinator is None:
        return f"no cluster was found here ({text}): give --coordinator HOST:PORT, --processes N and --process I"
    hint = ": is its port taken, perhaps by an older run?" if "RPC server" in text else ""
    return f"the cluster could not be joined: {text}{hint}"


def _refused() -> None:
    print("bert-jax: error: the coordinator refused this process: is --process or --processes wrong, or an older run still "
          f"there? {OWN_WORDS}", file=sys.stderr, flush=True)
    os._exit(1)


def _nobody_came(coordinator: str | None, processes: int | None, process: int | None) -> None:
    address = coordinator or distributed.global_state.coordinator_address
    error = _unreachable(address) if address else None
    line, status = f"not all {processes or ''} processes came", TEMPORARY
    if address is None:
        line, status = "no cluster could be found", 1
    elif isinstance(error, socket.gaierror):
        line, status = f"{address} is no known host: check --coordinator", 1
    elif error is not None:
        line = f"no process 0 answers at {address} ({error.strerror or error}): check that it runs, and --coordinator"
    who = "" if process is None else f"process {process}: "
    print(f"bert-jax: error: {who}{line}; waited {START_SECONDS:.0f} s", file=sys.stderr, flush=True)
    os._exit(status)


def _unreachable(address: str) -> OSError | None:
    """Why nobody can be connected to at HOST:PORT, or None."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 5).close()
    except OSError as error:
        return error
    return None


def _on_abort(act: Callable[[], None]) -> Any:
    """Calls ``act`` on SIGABRT. jax aborts the process when its coordination service loses a peer, and offers no other way
    to hear of it; Python's own handlers would run only after the process is gone. Returns what has to be kept alive."""

    def called(_):
        signal.alarm(30)  # should the interpreter be in no state to go on, the process ends all the same
        act()

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(called)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    return handler


def _prefix_logs(cluster: Cluster) -> None:
    """Says whose a log line is; of the other processes only errors, and what concerns the cluster, are shown, no progress."""
    if cluster.count == 1:
        return
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"bert-jax: {cluster.name.replace('%', '%%')}: %(levelname)s: %(message)s"))
    if not cluster.first:
        Progress.quiet = True
        logging.getLogger("bert_jax").setLevel(logging.ERROR)
        log.setLevel(logging.WARNING)
