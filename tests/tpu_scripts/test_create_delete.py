"""A slice comes and goes: the exact calls, waiting, refusals, and never more deleted than was shown."""

import pytest

from tests.tpu_scripts.conftest import READY

PLACE = ["--project=my-project", "--zone=us-central1-a"]
DESCRIBE = ["compute", "tpus", "queued-resources", "describe"]


@pytest.mark.parametrize(
    ("accelerator", "provisioning", "runtime", "flags"),
    [
        ("v5litepod-16", "spot", "v2-alpha-tpuv5-lite", ["--spot"]),
        ("v6e-256", "reserved", "v2-alpha-tpuv6e", ["--reserved"]),
        ("v5p-8", "on-demand", "v2-alpha-tpuv5", []),
        ("v4-32", "spot", "tpu-ubuntu2204-base", ["--spot"]),
    ],
)
def test_create_asks_once_and_waits(cloud, accelerator, provisioning, runtime, flags):
    cloud.tell(slice_after_create=READY.replace("v5litepod-8", accelerator))
    done = cloud.run("create.sh", ACCELERATOR_TYPE=accelerator, PROVISIONING=provisioning)
    assert cloud.calls("compute", "tpus", "queued-resources", "create") == [[
        "compute", "tpus", "queued-resources", "create", "job", *PLACE, "--node-id=job", f"--accelerator-type={accelerator}",
        f"--runtime-version={runtime}", "--scopes=https://www.googleapis.com/auth/cloud-platform", *flags, "--async", "--quiet",
    ]]
    assert len(cloud.calls(*DESCRIBE)) == 4  # absent, waiting, provisioning, active
    assert [word for word in ("WAITING_FOR_RESOURCES", "PROVISIONING", "is ACTIVE") if word in done.stderr] == [
        "WAITING_FOR_RESOURCES", "PROVISIONING", "is ACTIVE"
    ]


def test_create_again_waits_for_the_request_that_is_there(cloud):
    cloud.tell(request="WAITING_FOR_RESOURCES\nACTIVE", slice="CREATING,,0,,v5litepod-8\n" + READY)
    assert "exists already, in state WAITING_FOR_RESOURCES" in cloud.run("create.sh").stderr
    assert not cloud.calls("compute", "tpus", "queued-resources", "create")
    done = cloud.run("create.sh", ACCELERATOR_TYPE="v5litepod-16", status=1)  # what was changed in the settings meanwhile
    assert "job is a v5litepod-8, not a v5litepod-16: delete.sh first" in done.stderr


@pytest.mark.parametrize(("state", "words"), [("FAILED", "FAILED (no capacity)"), ("SUSPENDED", "SUSPENDED")])
def test_a_request_that_ended_is_said(cloud, state, words):
    cloud.tell(request=state)
    done = cloud.run("create.sh", status=75)
    assert words in done.stderr and "delete.sh" in done.stderr


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ("PERMISSION_DENIED: Permission 'tpu.nodes.get' denied (or it may not exist)", 1, "permission denied: "),
        ("HTTPError 403: me does not have access", 1, "permission denied: "),
        ("INVALID_ARGUMENT: name is too long", 1, "gcloud: "),
        ("You do not currently have an active account selected.", 1, "gcloud: "),
        ("HTTPError 503: the service is unavailable", 75, "gcloud: "),
        ("UNAVAILABLE: projects/140340412 does not answer", 75, "gcloud: "),  # 403 and 404 are no errors inside a number
        ("There was a problem refreshing your current auth tokens: timed out", 75, "gcloud: "),
    ],
)
def test_errors_are_one_line_and_tell_what_passes(cloud, answer, status, words):
    for questions in ({"request": f"ERROR {answer}"}, {"request": "ABSENT", "create_error": answer}):
        cloud.tell(**questions)
        lines = cloud.run("create.sh", status=status).stderr.splitlines()
        assert lines[0].startswith(f"create.sh: error: {words}ERROR: ") and answer in lines[0]
        assert lines[0].endswith("; run it again") == (status == 75)
        assert len(lines) == 1 + ("create_error" in questions) and ("not accepted" in lines[-1]) == (len(lines) == 2)


def test_what_does_not_exist_is_not_asked_for_again(cloud):
    cloud.tell(create_error="NOT_FOUND: Location us-central9-z is not found")
    assert "no such project, zone, accelerator or runtime" in cloud.run("create.sh", status=1).stderr


def test_waiting_outlasts_questions_that_fail(cloud):
    cloud.tell(
        request_after_create="WAITING_FOR_RESOURCES\nERROR HTTPError 503: later\nERROR UNAVAILABLE\nPROVISIONING\nACTIVE",
        slice_after_create=f"ERROR DEADLINE_EXCEEDED\n{READY}",
    )
    done = cloud.run("create.sh")
    assert done.stderr.count("no answer from gcloud; looking again") == 3 and "is ACTIVE" in done.stderr
    cloud.tell(request="WAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nERROR PERMISSION_DENIED")  # this one would not pass
    assert "permission denied" in cloud.run("create.sh", status=1).stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        ((), {"PROJECT": ""}, "PROJECT is not set: give --project"),
        (("--nmae=x",), {}, "no flag --nmae"),
        (("--data=x",), {}, "no flag --data"),  # a setting, but not one of this script
        (("job",), {}, "what is job?"),
        (("--name",), {}, "--name needs a value"),
        (("--dry-run=1",), {}, "takes no value"),
        (("--", "x"), {}, "nothing may follow --"),
        (("--settings=none",), {}, "cannot read the settings file none"),
        (("--accelerator-type=h100",), {}, "ACCELERATOR_TYPE is h100"),
        (("--provisioning=cheap",), {}, "spot, on-demand or reserved"),
        (("--poll=soon",), {}, "POLL is soon: a whole number"),
    ],
)
def test_wrong_usage(cloud, arguments, env, words):
    done = cloud.run("create.sh", *arguments, status=2, **env)
    assert words in done.stderr and done.stderr.count("\n") == 1 and not cloud.calls()


def test_settings_file_environment_flag_in_this_order(cloud, tmp_path):
    (tmp_path / "job.env").write_text("# a job\n\nZONE=file-a\nNAME=file\nSERVICE_ACCOUNT=me@my-project\nBUCKET=not-used\n")
    cloud.run("create.sh", f"--settings={tmp_path / 'job.env'}", "--name", "flag")
    (call,) = cloud.calls("compute", "tpus", "queued-resources", "create")
    assert call[4:7] == ["flag", *PLACE] and "--service-account=me@my-project" in call
    (tmp_path / "job.env").write_text("ZOEN=x\n")
    assert "line 1: not a setting" in cloud.run("create.sh", "--settings", str(tmp_path / "job.env"), status=2).stderr


def test_delete_shows_asks_and_spares_the_bucket(cloud):
    cloud.tell(request="ACTIVE", slice=READY)
    for answer, words in (("no\n", "the answer was not job"), ("", "the answer was not job"), (None, "give --yes")):
        done = cloud.run("delete.sh", answer=answer, status=1)
        assert words in done.stderr.splitlines()[-1]
        assert "request job, ACTIVE" in done.stderr and "v5litepod-8, 2 workers" in done.stderr
    cloud.run("delete.sh", status=1, YES="1")  # never from the environment
    assert not cloud.calls("compute", "tpus", "queued-resources", "delete")

    cloud.run("delete.sh", answer="job\n")
    deletion = ["compute", "tpus", "queued-resources", "delete", "job", *PLACE, "--force", "--quiet"]
    assert cloud.calls("compute", "tpus", "queued-resources", "delete") == [deletion]
    assert not cloud.calls("storage")
    assert "nothing to delete" in cloud.run("delete.sh", "--yes").stderr
    assert len(cloud.calls("compute", "tpus", "queued-resources", "delete")) == 1


