"""A job on a slice of two workers, worker.sh really running on both: setting up, starting, looking, tracing, copying back."""

import shutil
import subprocess
import time

import jax.numpy as jnp
import pytest

from bert_jax.checkpoint import COMPLETE, Checkpoints
from tests.tpu_scripts.conftest import READY, SCRIPTS


@pytest.fixture
def slice_(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    return cloud


@pytest.fixture
def ready(slice_):
    slice_.run("setup.sh")
    return slice_


def test_setup_makes_every_worker_ready(slice_):
    done = slice_.run("setup.sh")
    assert "devices 4 of 8 on worker 0\ndevices 4 of 8 on worker 1\nready: 2 workers, 8 devices" in done.stderr
    for number in range(2):
        job = slice_.folder / f"worker-{number}" / "bert_jax_job"
        assert (job / "venv/bin/bert-jax").exists() and (job / "data/manifest.json").read_text() == "{}"
        assert (job / "source/bert_jax/cli.py").exists() and (job / "source/pyproject.toml").exists()
        assert not list((job / "source").rglob("__pycache__"))
    assert [call[3:6] for call in slice_.calls("compute", "tpus", "tpu-vm", "scp")] == [
        ["scp", str(slice_.folder / ".local/state/bert_jax/my-project.us-central1-a.job/source.tar.gz"), slice_.calls(
            "compute", "tpus", "tpu-vm", "scp")[0][5]]
    ]
    assert not list((slice_.folder / "bucket/runs/job").iterdir())  # the probes are gone
    (slice_.folder / "worker-0/bert_jax_job/source/old.py").touch()
    slice_.run("setup.sh")  # again: nothing is mounted twice, no old file stays
    assert not (slice_.folder / "worker-0/bert_jax_job/source/old.py").exists()


@pytest.mark.parametrize(
    ("accelerator", "workers", "devices"),
    [("v2-8", 1, 8), ("v3-32", 4, 32), ("v4-16", 2, 8), ("v5p-16", 2, 8), ("v5litepod-16", 4, 16), ("v6e-8", 1, 8)],
)
def test_setup_counts_as_jax_does(slice_, accelerator, workers, devices):
    """The cores of a v2 or v3 chip are devices (bert_jax/planning/chips.py), those of later ones are not."""
    slice_.tell(slice=f"READY,HEALTHY,{workers},2026-01-01T00:00:00Z,{accelerator}", workers=f"{workers}",
                devices=f"{devices // workers} of {devices}")
    assert f"ready: {workers} workers, {devices} devices" in slice_.run("setup.sh").stderr


def test_setup_says_what_is_wrong(slice_):
    slice_.tell(devices="3 of 8")
    assert "not every worker sees its share" in slice_.run("setup.sh", status=1).stderr
    done = slice_.run("setup.sh", DATA="stores/none", status=1)
    assert done.stderr.startswith("setup.sh: error: gs://my-bucket/stores/none holds no token store")
    slice_.tell(bucket_error="HTTPError 403: me@x does not have storage.objects.list access to the bucket")
    done = slice_.run("setup.sh", status=1)
    assert done.stderr.startswith("setup.sh: error: permission denied: ") and done.stderr.count("\n") == 1
    slice_.tell(slice=READY.replace("READY", "CREATING"))
    (slice_.folder / "bucket_error").unlink()
    assert "is CREATING, not READY" in slice_.run("setup.sh", status=75).stderr


def test_setup_with_another_bucket_mounts_that_one(ready):
    shutil.copytree(ready.folder / "bucket/stores", ready.folder / "second/stores")
    ready.run("setup.sh", BUCKET="gs://second")
    ready.plan("0 100 0", "0 - 0")
    ready.run("run.sh")
    ready.settled("exited 0")
    assert (ready.folder / "second/runs/job/checkpoints/100").is_dir()
    assert not list((ready.folder / "bucket/runs/job").iterdir())


def test_a_worker_that_fails_and_one_that_refuses(slice_):
    (slice_.folder / "no_python").touch()
    done = slice_.run("setup.sh", status=75)
    assert "worker 1: error: making the environment failed: error: no download (all of it: " in done.stderr
    (slice_.folder / "no_python").unlink()
    (slice_.folder / "bucket/runs").write_text("a file in the way: the folder cannot be made")
    done = slice_.run("setup.sh", status=1)
    assert "worker 0: error: gs://my-bucket/runs/job cannot be written" in done.stderr and "objectUser" in done.stderr
    slice_.tell(dead="worker-1")
    assert "status 255" in slice_.run("setup.sh", WORKDIR="elsewhere", status=75).stderr


def test_run_starts_all_detached_and_once(ready):
    ready.plan("0 100 30", "0 - 30")
    (ready.folder / "libtpu_lockfile").touch()  # what a killed process leaves
    ready.run("run.sh", "--profiler-port", "9012", "--", "--set", "train.batch_size=512", "--set", "x=a  'b'")
    states = ready.settled("running")
    assert [state.split()[:3] for state in states] == [["worker", "0", "running"], ["worker", "1", "running"]]
    assert not (ready.folder / "libtpu_lockfile").exists()
    for number in range(2):
        job = ready.folder / f"worker-{number}/bert_jax_job"
        assert ready.started(number) == [
            f"pretrain --data {job}/data --workdir {job}/bucket/runs/job --config configs/pretrain/bert_base_128.py "
            "--distributed --profiler-port 9012 --set train.batch_size=512 --set x=a  'b'"
        ]
    done = ready.run("run.sh", status=75)  # the second start is refused, and ends neither of the first
    assert "a run is under way already" in done.stderr and "worker 1 running" in done.stderr
    assert len(ready.settled("running")) == 2 and len(ready.started(0)) == 1


def test_stop_saves_and_run_continues(ready):
    ready.plan("0 100 60; 0 200 0", "0 - 60; 0 - 0")
    ready.run("run.sh")
    ready.settled("running")
    began = time.monotonic()
    ready.run("stop.sh")
    assert ready.settled("exited") == ["worker 0 exited 75", "worker 1 exited 75"] and time.monotonic() - began < 20
    ready.run("run.sh")
    assert ready.settled("exited 0") and len(ready.started(0)) == 2
    logs = sorted((ready.folder / "bucket/runs/job/logs").iterdir())
    assert {log.name.split("-", 1)[1] for log in logs} == {"worker-0.log", "worker-1.log"}
    assert "asked to stop" in logs[0].read_text() and "ended with status 75" in logs[0].read_text()


@pytest.mark.parametrize("notice", ["TERMINATE_ON_HOST_MAINTENANCEFALSE", "NONETRUE"])
def test_a_notice_of_the_machine_s_end_saves(ready, notice):
    ready.plan("0 100 60", "0 - 60")
    ready.run("run.sh")
    ready.settled("running")
    ready.tell(notice=notice)
    assert ready.settled("exited") == ["worker 0 exited 75", "worker 1 exited 75"]
    log = (ready.folder / "worker-0/bert_jax_job/logs/run.log").read_text()
    assert f"notice: {notice}: asking the run to save" in log and "asked to stop" in log
    assert "instance/maintenance-event" in (ready.folder / "asked").read_text()


def test_run_refuses_before_setup_and_without_configuration(slice_):
    assert "no configuration configs/none.py" in slice_.run("run.sh", CONFIG="configs/none.py", status=1).stderr
    slice_.run("run.sh", status=75)  # worker.sh is not there: ssh's status 127


def test_status(ready):
    ready.plan("0 100 30", "137 - 0")
    ready.run("run.sh")
    (ready.folder / "bucket/runs/job/checkpoints/200/params").mkdir(parents=True)  # a save under way
    for _ in range(100):
        done = ready.run("status.sh", "--price", "0.25")
        if "exited" in done.stdout:
            break
    text = done.stdout
    assert "request     ACTIVE" in text and "READY HEALTHY, v5litepod-8, 2 workers" in text
    assert "running     1 workers" in text and "exited      1 workers: worker 1 with 137" in text
    assert "step 7/100 loss 6.543" in text and "checkpoint  100" in text
    assert "chip hours at $0.25" in text
    ready.run("delete.sh", "--yes")
    done = ready.run("status.sh")
    assert "request     ABSENT" in done.stdout and "slice       none" in done.stdout
    assert 'last record {"step": 7, "loss": 6.5}' in done.stdout
    assert float(done.stdout.split("money")[1].split()[0]) > 8 * 24  # the slice since January is remembered
    assert "permission denied" in ready.run("status.sh", BUCKET="b" * 3, status=1, **denied(ready)).stderr


def test_the_newest_checkpoint_is_one_that_checkpoint_py_takes_for_complete(cloud):
    folder = cloud.folder / "bucket/runs/job/checkpoints"
    checkpoints = Checkpoints(folder, keep=3)
    for step in (7, 9, 10):
        checkpoints.save(step, {"params": {"x": jnp.ones(2)}}, {})
    checkpoints.close()
    local = ["bash", "-c", f"source {SCRIPTS}/common.sh; local_checkpoint {folder.parent}"]
    for newest in (10, 9, 7, "none"):
        assert checkpoints.steps()[-1:] == [newest] or newest == "none"
        assert f"checkpoint  {newest}\n" in cloud.run("status.sh").stdout
        assert subprocess.run(local, env=cloud.env, text=True, capture_output=True).stdout == f"{newest}\n"
        if newest != "none":
            (folder / str(newest) / COMPLETE).unlink()


def denied(cloud) -> dict[str, str]:
    cloud.tell(bucket_error="HTTPError 403: no storage.objects.list access")
    return {}


def test_profile_brings_the_trace(ready, tmp_path):
    done = ready.run("profile.sh", "--to", str(tmp_path / "trace"), "--profiler-port", "9012", "--worker", "1", status=1)
    assert "no run is under way" in done.stderr
    ready.plan("0 - 30", "0 - 30")
    ready.run("run.sh", "--profiler-port", "9012")
    ready.settled("running")
    done = ready.run("profile.sh", "--to", str(tmp_path / "trace"), "--profiler-port=9012", "--worker=1", "--seconds=3")
    (trace,) = (tmp_path / "trace").rglob("*.xplane.pb")
    assert trace.name == "9012.xplane.pb" and f"xprof --logdir {trace.parents[3]}" in done.stderr
    assert "PROFILER_PORT is not set" in ready.run("profile.sh", "--to", "x", status=2).stderr


def test_copy_back_resumes_and_loses_nothing(cloud, tmp_path):
    run = cloud.folder / "bucket/runs/job"
    assert "is no work directory" in cloud.run("copy_back.sh", "--to", str(tmp_path / "back"), status=1).stderr
    whole = [f"{folder}/{COMPLETE}" for folder in ("checkpoints/100", "best/50")]
    names = ["experiment.json", "metrics.jsonl", "checkpoints/100/params/a", "best/50/params/a", *whole]
    for name in [*names, "checkpoints/200/params/a", "checkpoints/1000/params/a", "best/60/params/a", "checkpoints/.probe-1"]:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    (cloud.folder / "interrupt_rsync").touch()
    done = cloud.run("copy_back.sh", "--to", str(tmp_path / "back"), status=1)
    assert "the same command goes on" in done.stderr
    (tmp_path / "back" / "mine").write_text("kept")

    def copied():
        cloud.run("copy_back.sh", "--to", str(tmp_path / "back"))
        return {str(p.relative_to(tmp_path / "back")) for p in (tmp_path / "back").rglob("*") if p.is_file()}

    assert copied() == {*names, "mine"}  # no save under way
    cloud.tell(meanwhile=f"runs/job/checkpoints/200/{COMPLETE}")  # complete while the first round copies
    assert copied() == {*names, "mine", "checkpoints/200/params/a", f"checkpoints/200/{COMPLETE}"}
    assert "--delete-unmatched-destination-objects" not in str(cloud.calls())
