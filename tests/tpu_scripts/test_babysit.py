"""babysit.sh brings a run to its end, whatever happens to slice, workers and itself."""

import re
import signal
import subprocess
import time

import pytest

from bert_jax.checkpoint import COMPLETE
from tests.tpu_scripts.conftest import READY, ROOT, SCRIPTS


def test_from_nothing_through_a_crash_to_the_end(cloud):
    cloud.plan("137 100 0; 75 200 0; 0 300 0", "75 - 0; 75 - 0; 0 - 0")
    done = cloud.run("babysit.sh", "--", "--set", "train.steps=300")
    assert len(cloud.started(0)) == len(cloud.started(1)) == 3
    assert all(line.endswith("--distributed --set train.steps=300") for line in cloud.started(0))
    assert len(cloud.calls("compute", "tpus", "queued-resources", "create")) == 1
    assert not cloud.calls("compute", "tpus", "queued-resources", "delete")
    assert "finished" in done.stderr and "costs money" in done.stderr and "worker 0 exited 137" in done.stderr
    assert "start 1 since checkpoint 100" in done.stderr and "start 1 since checkpoint 200" in done.stderr


@pytest.mark.slow
def test_preempted_in_mid_run(cloud):
    cloud.plan("0 100 60; 0 200 0", "0 - 60; 0 - 0")
    # READY for some looks, then preempted; what create brings the second time stays.
    cloud.tell(request_after_create="WAITING_FOR_RESOURCES\nACTIVE", slice_after_create="\n".join([READY] * 5 + [READY.replace(
        "READY", "PREEMPTED")]))
    babysitter = subprocess.Popen(
        [SCRIPTS / "babysit.sh", "--delete-at-end"], env=cloud.env, cwd=ROOT, text=True, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    for _ in range(400):
        if cloud.calls("compute", "tpus", "queued-resources", "delete"):
            break
        time.sleep(0.05)
    cloud.tell(slice_after_create=READY)
    _, text = babysitter.communicate(timeout=100)
    assert babysitter.returncode == 0, text
    assert "was lost (request ACTIVE, slice PREEMPTED): making the slice anew" in text
    assert "setting up the source of" in text  # the code that the run began with
    assert len(cloud.started(0)) == 2
    assert len(cloud.calls("compute", "tpus", "queued-resources", "create")) == 2
    assert len(cloud.calls("compute", "tpus", "queued-resources", "delete")) == 2  # the lost one, and at the end
    assert len((cloud.folder / ".local/state/bert_jax/my-project.us-central1-a.job/slices").read_text().splitlines()) == 2


def test_killed_while_it_waits_it_can_be_started_again(cloud):
    """What create.sh does meanwhile goes on for a while, and must not hold the lock."""
    cloud.tell(request_after_create="WAITING_FOR_RESOURCES")
    first = subprocess.Popen([SCRIPTS / "babysit.sh"], env=cloud.env | {"POLL": "5"}, cwd=ROOT, stderr=subprocess.DEVNULL,
                             stdin=subprocess.DEVNULL)
    for _ in range(200):
        if cloud.calls("compute", "tpus", "queued-resources", "create"):
            break
        time.sleep(0.05)
    first.kill()
    first.wait()
    cloud.tell(request="ACTIVE", slice=READY)
    cloud.plan("0 100 0", "0 - 0")
    assert "finished" in cloud.run("babysit.sh").stderr


def test_refusal_ends_it(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    cloud.plan("75 100 0", "1 - 0")
    done = cloud.run("babysit.sh", status=1)
    assert "worker 1 ended with status 1: starting again would not help" in done.stderr
    assert "bert-jax: error: the loss is not finite" in done.stderr
    assert len(cloud.started(0)) == 1


def test_after_a_refusal_it_starts_the_corrected_run(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    cloud.plan("1 - 0; 0 100 0", "1 - 0; 0 - 0")
    cloud.run("babysit.sh", status=1)
    cloud.tell(ssh_error="worker.sh start")  # and the old end is no news either when the start fails at first
    done = cloud.run("babysit.sh", "--delete-at-end", "--", "--set", "optimizer.peak=1e-4")
    assert [line.endswith("peak=1e-4") for line in cloud.started(1)] == [False, True]
    assert "finished" in done.stderr and "would not help" not in done.stderr
    assert "status 255" in done.stderr and "start 2 since checkpoint none" in done.stderr


def test_a_finished_run_is_prolonged(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    cloud.plan("0 100 0; 0 200 0; 1 - 0", "0 - 0; 0 - 0; 0 - 0")
    cloud.run("babysit.sh")
    cloud.run("babysit.sh", "--", "--set", "train.steps=200")
    assert len(cloud.started(0)) == 2 and cloud.started(0)[1].endswith("train.steps=200")
    done = cloud.run("babysit.sh", "--delete-at-end", status=1)  # a new refusal is one
    assert "worker 0 ended with status 1" in done.stderr and len(cloud.started(0)) == 3


def test_a_refusal_of_a_run_that_it_did_not_start(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    cloud.plan("0 100 30", "1 - 0")
    cloud.run("setup.sh")
    cloud.run("run.sh")
    cloud.settled("running", "exited 1")
    done = cloud.run("babysit.sh", status=1)  # one worker still runs: this is how the run ends that goes on now
    assert "worker 1 ended with status 1" in done.stderr and len(cloud.started(1)) == 1


def test_a_bucket_that_denies_ends_it(cloud):
    cloud.tell(request="ACTIVE", slice=READY, workers="2")
    (cloud.folder / "bucket/runs").write_text("in the way")
    done = cloud.run("babysit.sh", status=1)
    assert "cannot be written" in done.stderr and "refused" in done.stderr and cloud.started(0) == []


@pytest.mark.parametrize("error", ["HTTPError 503: later", "There was a problem refreshing your current auth tokens"])
def test_a_question_that_fails_is_no_refusal(cloud, error):
    cloud.tell(request="ACTIVE", slice=READY, bucket_error=f"-\n{error}\n-")  # the second one: setup.sh looks for the store
    cloud.plan("0 100 0", "0 - 0")
    done = cloud.run("babysit.sh", "--delete-at-end")
    assert error in done.stderr and "refused" not in done.stderr and len(cloud.started(0)) == 1
    assert len(cloud.calls("compute", "tpus", "queued-resources", "delete")) == 1  # at the end


def test_lost_before_its_setup_is_no_refusal(cloud):
    cloud.tell(request="ACTIVE", slice=f"{READY}\n{READY.replace('READY', 'PREEMPTED')}")
    cloud.plan("0 100 0", "0 - 0")
    done = cloud.run("babysit.sh")
    assert "is PREEMPTED, not READY" in done.stderr and "making the slice anew" in done.stderr and "finished" in done.stderr


def test_an_unknown_checkpoint_is_not_none(cloud):
    save = cloud.folder / f"bucket/runs/job/checkpoints/100/{COMPLETE}"
    save.parent.mkdir(parents=True)
    save.touch()
    cloud.tell(request="ACTIVE", slice=READY, bucket_error="HTTPError 503: later\n-")
    cloud.plan("0 200 0", "0 - 0")
    assert re.findall("since checkpoint .*", cloud.run("babysit.sh").stderr) == ["since checkpoint 100"]
    cloud.run("delete.sh", "--yes")
    cloud.tell(bucket_error="HTTPError 403: no")
    assert "refused" in cloud.run("babysit.sh", status=1).stderr
    assert not cloud.calls("compute", "tpus", "queued-resources", "create")  # nothing that costs


@pytest.mark.slow
def test_waiting_for_a_slice_is_not_counted(cloud):
    cloud.plan("0 100 0", "0 - 0")
    cloud.tell(request_after_create="WAITING_FOR_RESOURCES\nFAILED")
    babysitter = subprocess.Popen([SCRIPTS / "babysit.sh", "--max-starts=1"], env=cloud.env, cwd=ROOT, text=True,
                                  stderr=subprocess.PIPE)
    for _ in range(400):
        if len(cloud.calls("compute", "tpus", "queued-resources", "create")) >= 3:
            break
        time.sleep(0.05)
    cloud.tell(request_after_create="ERROR UNAVAILABLE\nACTIVE")
    _, text = babysitter.communicate(timeout=100)
    assert babysitter.returncode == 0 and "FAILED (no capacity)" in text, text
    assert re.findall("start .* since.*", text) == ["start 1 since checkpoint none"]


def test_setups_that_fail_are_counted_and_the_deletion_is_tried_again(cloud):
    (cloud.folder / "no_python").touch()
    cloud.tell(delete_error="HTTPError 503: later")
    done = cloud.run("babysit.sh", "--max-starts=3", "--delete-at-end", status=1)
    assert "giving up: setup.sh failed 3 times in a row" in done.stderr and cloud.started(0) == []
    assert len(cloud.calls("compute", "tpus", "tpu-vm", "scp")) == 3
    assert len(cloud.calls("compute", "tpus", "queued-resources", "delete")) == 2
    assert (cloud.folder / "request").read_text() == "ABSENT\n"


@pytest.mark.slow
def test_gives_up_without_progress(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    cloud.plan("134 100 0" + "; 134 - 0" * 20, "134 - 0" + "; 134 - 0" * 20)
    done = cloud.run("babysit.sh", "--max-starts=3", "--delete-at-end", status=1)
    assert "started 3 times without a new checkpoint (newest: 100)" in done.stderr
    assert len(cloud.started(0)) == 4  # the first left a checkpoint, three more did not
    assert len(cloud.calls("compute", "tpus", "queued-resources", "delete")) == 1


def test_a_save_cut_short_is_no_progress(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    cloud.plan("137 100 0; 137 200~ 0; 137 - 0; 137 200~ 0; 137 - 0; 0 300 0", "137 - 0" + "; 137 - 0" * 4 + "; 0 - 0")
    done = cloud.run("babysit.sh", "--max-starts=3", status=1)
    assert "started 3 times without a new checkpoint (newest: 100)" in done.stderr and len(cloud.started(0)) == 4


@pytest.mark.slow
def test_one_worker_dies_and_the_others_hang(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    cloud.plan("0 100 60; 0 200 0", "137 - 0; 0 - 0")
    done = cloud.run("babysit.sh")
    assert "1 of 2 workers run; step 7/100" in done.stderr and "finished" in done.stderr
    assert "ended with status 75" in (cloud.folder / "worker-0/bert_jax_job/logs/run.log").read_text()  # asked to save


@pytest.mark.slow
def test_a_dead_worker_is_a_lost_slice(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    cloud.plan("0 100 0", "0 - 0")
    cloud.run("setup.sh")
    cloud.tell(dead="worker-1", delete_error="HTTPError 503: later")
    babysitter = subprocess.Popen([SCRIPTS / "babysit.sh"], env=cloud.env, cwd=ROOT, text=True, stderr=subprocess.PIPE)
    for _ in range(400):
        if len(cloud.calls("compute", "tpus", "queued-resources", "delete")) >= 2:
            break
        time.sleep(0.05)
    (cloud.folder / "dead").unlink()
    _, text = babysitter.communicate(timeout=100)
    assert babysitter.returncode == 0 and "does not answer (10 of 10)" in text and "making the slice anew" in text


@pytest.mark.slow
def test_killed_and_started_anew_it_takes_over(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    cloud.plan("0 100 6", "0 - 6")
    first = subprocess.Popen([SCRIPTS / "babysit.sh"], env=cloud.env, cwd=ROOT, text=True, stderr=subprocess.PIPE)
    for _ in range(400):
        if cloud.started(1):
            break
        time.sleep(0.05)
    assert "another babysit.sh watches job already" in cloud.run("babysit.sh", status=1).stderr
    first.send_signal(signal.SIGKILL)
    first.communicate()
    # Its patience with workers that end one after another is counted in looks: on a busy machine ten without a pause are short.
    done = cloud.run("babysit.sh", POLL="1")
    assert "2 of 2 workers run" in done.stderr and "finished" in done.stderr
    assert len(cloud.started(0)) == 1  # the run went on without it
