"""A cloud to rehearse in: stand-ins for gcloud and for what a worker has, on PATH, in a folder. They record every call.

What a script sends to a worker is really run, in a home folder of that worker: ``worker.sh`` is tested as it will run.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

SCRIPTS = ROOT / "tpu_scripts"

GCLOUD = r'''
import json, os, pathlib, re, shutil, subprocess, sys
cloud = pathlib.Path(os.environ["CLOUD"])
words = sys.argv[1:]
with open(cloud / "calls", "a") as file:
    file.write(json.dumps(["gcloud", *words]) + "\n")

def value(flag, otherwise=None):
    return next((w.split("=", 1)[1] for w in words if w.startswith(flag + "=")), otherwise)

def die(message, status=1):
    print(f"ERROR: (gcloud.{'.'.join(words[:3])}) {message}", file=sys.stderr)
    sys.exit(status)

def answer(name):  # the next line of a file; the last one stays
    path = cloud / name
    lines = path.read_text().splitlines() if path.exists() else []
    line = lines[0] if lines else "ABSENT"
    if len(lines) > 1:
        path.write_text("\n".join(lines[1:]) + "\n")
    if line == "ABSENT":
        die("NOT_FOUND: Resource 'projects/p/locations/z/nodes/job' was not found")
    if line.startswith("ERROR "):
        die(line[6:])
    return line

def once(name):  # what a file tells to go wrong, the first time
    path = cloud / name
    if path.exists():
        message = path.read_text().strip()
        path.unlink()
        die(message)

def local(url):  # gs://my-bucket/path as a path in the cloud's folder, as its gcsfuse mounts it
    path = cloud / "bucket_error"  # a line for each question, "-" for none; the last one stays
    if path.exists():
        line, *others = path.read_text().splitlines()
        if others:
            path.write_text("\n".join(others) + "\n")
        if line != "-":
            die(line)
    name, _, path = url.removeprefix("gs://").partition("/")
    return cloud / ("bucket" if name == "my-bucket" else name) / path

kind = words[:4] if words[0] == "compute" else words[:2]
if kind == ["compute", "tpus", "queued-resources", "describe"]:
    print("no capacity" if "failedData" in value("--format") else answer("request"))
elif kind == ["compute", "tpus", "tpu-vm", "describe"]:
    print(answer("slice"))
elif kind == ["compute", "tpus", "queued-resources", "create"]:
    if (cloud / "create_error").exists():
        die((cloud / "create_error").read_text())
    shutil.copy(cloud / "request_after_create", cloud / "request")
    shutil.copy(cloud / "slice_after_create", cloud / "slice")
elif kind == ["compute", "tpus", "queued-resources", "delete"]:
    once("delete_error")
    (cloud / "request").write_text("ABSENT\n")
    (cloud / "slice").write_text("ABSENT\n")
    for home in cloud.glob("worker-*"):  # the disks of the slice are gone, and all that ran there
        for path in home.glob("bert_jax_job/pid"):
            try:
                os.killpg(os.getpgid(int(path.read_text())), 9)
            except (ValueError, ProcessLookupError):
                pass
        home.rename(cloud / f"lost-{len(list(cloud.glob('lost-*')))}")
elif kind == ["compute", "tpus", "tpu-vm", "ssh"]:
    homes = sorted(cloud.glob("worker-*"))
    if not homes:
        for number in range(int((cloud / "workers").read_text())):
            homes.append(cloud / f"worker-{number}")
            homes[-1].mkdir()
    fails = cloud / "ssh_error"  # the first command with this in it does not get through
    if fails.exists() and fails.read_text().strip() in value("--command"):
        fails.unlink()
        sys.exit(255)
    chosen = homes if value("--worker") == "all" else [homes[int(value("--worker"))]]
    dead = (cloud / "dead").read_text().split() if (cloud / "dead").exists() else []
    runs = [
        subprocess.Popen(["bash", "-c", value("--command")], cwd=home, stdin=subprocess.DEVNULL,
                         env=os.environ | {"HOME": str(home), "HOSTNAME": "t1v-n-0a1b-w-" + home.name.split("-")[1]})
        for home in chosen if home.name not in dead
    ]
    statuses = [run.wait() for run in runs] + [255] * (len(chosen) - len(runs))
    sys.exit(next((status for status in statuses if status), 0))
elif kind == ["compute", "tpus", "tpu-vm", "scp"]:
    paths = [w for w in words[4:] if not w.startswith("--")]
    if paths[-1].endswith(":"):
        for number in range(int((cloud / "workers").read_text())):
            (cloud / f"worker-{number}").mkdir(exist_ok=True)
            for path in paths[:-1]:
                shutil.copy(path, cloud / f"worker-{number}")
    else:
        source = cloud / f"worker-{value('--worker')}" / paths[0].partition(":")[2]
        shutil.copytree(source, pathlib.Path(paths[-1]) / source.name)
elif kind == ["storage", "ls"]:
    bucket = local("/".join(words[2].split("/")[:3]) + "/")
    paths = sorted(bucket.glob(words[2].split("/", 3)[3]))
    if not paths:
        die("One or more URLs matched no objects.")
    for path in paths:
        print("/".join(words[2].split("/")[:3]) + f"/{path.relative_to(bucket)}")
elif kind == ["storage", "cat"]:
    if not local(words[2]).exists():
        die("The following URLs matched no objects or files.")
    print(local(words[2]).read_text(), end="")
elif kind == ["storage", "rsync"]:
    source, target = (w for w in words[2:] if not w.startswith("--"))
    exclude = value("--exclude", "$^")  # commas part several of them, which one of ours must not become
    assert "," not in exclude
    for path in sorted(local(source).rglob("*")):
        relative = path.relative_to(local(source))
        copy = pathlib.Path(target) / relative
        if path.is_file() and not re.match(exclude, str(relative)) and not (
                copy.exists() and copy.read_bytes() == path.read_bytes()):
            if "--dry-run" in words:
                print(f"Would copy {path} to {copy}", file=sys.stderr)
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
            if (cloud / "interrupt_rsync").exists():
                (cloud / "interrupt_rsync").unlink()
                die("connection reset")
    if (cloud / "meanwhile").exists():  # a file that the run finishes writing just then
        path = cloud / "bucket" / (cloud / "meanwhile").read_text().strip()
        (cloud / "meanwhile").unlink()
        path.write_text("{}")
else:
    die("Invalid choice: " + " ".join(words), 2)
'''

# What bert_jax/checkpoint.py does to $checkpoints: a run that begins clears what was cut short; the last file of a save
# completes it. STEP is a number, "-" for no save, or with a "~" behind it one that is cut short.
CHECKPOINTS = r'''
begin() {
  local folder
  for folder in "$checkpoints"/*/; do [[ ! -d $folder || -e $folder/_CHECKPOINT_METADATA ]] || rm -r "$folder"; done
}
save() { # STEP
  [[ $1 != - ]] || return 0
  mkdir -p "$checkpoints/${1%"~"}"/{params,optimizer}
  [[ $1 == *"~" ]] || echo '{}' >"$checkpoints/$1/_CHECKPOINT_METADATA"
}
'''
# On a worker: the environment's python and bert-jax are these two. A line of $CLOUD/plan-WORKER says how a start goes:
# STATUS STEP SECONDS.
PYTHON = r'''#!/usr/bin/env bash
worker=${HOSTNAME##*-}
case "$*" in
  *jax.distributed*) echo "devices $(cat "$CLOUD/devices") on worker $worker" ;;
  *collect_profile*) while [[ $1 != --log_dir ]]; do shift; done
    mkdir -p "$2/plugins/profile/1" && echo trace >"$2/plugins/profile/1/$3.xplane.pb" ;;
esac
'''
BERT_JAX = "#!/usr/bin/env bash" + CHECKPOINTS + r'''
worker=${HOSTNAME##*-} plan=$CLOUD/plan-${HOSTNAME##*-}
printf '%s\n' "$*" >>"$CLOUD/started-$worker"
while (($#)); do [[ $1 == --workdir ]] && workdir=$2; shift; done
read -r status step seconds <"$plan" || { status=0 step=- seconds=0; }
sed -i 1d "$plan" 2>/dev/null
trap 'echo asked to stop; exit 75' TERM
echo "step 7/100 loss 6.543 left 0:01:00"
checkpoints=$workdir/checkpoints
if ((worker == 0)); then begin; save "$step"; fi
if ((worker == 0)); then echo '{"step": 7, "loss": 6.5}' >>"$workdir/metrics.jsonl" && touch "$workdir/experiment.json"; fi
end=$((SECONDS + seconds))
while ((SECONDS < end)); do sleep 0.05; done
((status != 1)) || echo "bert-jax: error: the loss is not finite"
((status != 137)) || kill -KILL $$
exit "$status"
'''
TOOLS = {
    "uv": r'''#!/usr/bin/env bash
case "$1 $2" in
  "venv --python") [[ ! -e $CLOUD/no_python ]] || { echo "error: no download" >&2; exit 1; }
    mkdir -p "$4/bin"; cp "$CLOUD/python" "$4/bin/python"; chmod +x "$4/bin/python" ;;
  "pip install") venv=$(dirname "$4"); cp "$CLOUD/bert-jax" "$venv/bert-jax"; chmod +x "$venv/bert-jax" ;;
esac''',
    "gcsfuse": r'''#!/usr/bin/env bash
name=${@: -2:1} && rmdir "${@: -1}" && ln -s "$CLOUD/${name/#my-bucket/bucket}" "${@: -1}"''',
    "fusermount": r'''#!/usr/bin/env bash
[[ $1 == -u ]] && rm "$2" && mkdir "$2"''',
    "mountpoint": '#!/usr/bin/env bash\n[[ -L $2 ]]',
    "curl": '#!/usr/bin/env bash\necho "$*" >>"$CLOUD/asked"; cat "$CLOUD/notice"',
    "sudo": '#!/usr/bin/env bash\nprintf "sudo %s\\n" "$*" >>"$CLOUD/sudo"',
}


class Cloud:
    """The stand-ins and what they are told to answer; ``run`` calls a script among them."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.tool("gcloud", f"#!{sys.executable} -IS\n{GCLOUD}")
        for name, text in TOOLS.items():
            self.tool(name, text)
        (folder / "python").write_text(PYTHON)
        (folder / "bert-jax").write_text(BERT_JAX)
        store = folder / "bucket" / "stores" / "books"
        store.mkdir(parents=True)
        (store / "manifest.json").write_text("{}")
        self.tell(
            workers="2", devices="4 of 8", notice="NONEFALSE", request="ABSENT", slice="ABSENT",
            request_after_create="WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE", slice_after_create=READY,
        )
        self.env = {
            "PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(folder), "CLOUD": str(folder), "PROJECT": "my-project",
            "ZONE": "us-central1-a", "NAME": "job", "ACCELERATOR_TYPE": "v5litepod-8", "BUCKET": "gs://my-bucket",
            "DATA": "stores/books", "CONFIG": "configs/pretrain/bert_base_128.py", "POLL": "0",
            "NOTICE_SECONDS": "0.2",
            "LIBTPU_LOCK_FILE": str(folder / "libtpu_lockfile"),
        }

    def tool(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def tell(self, **answers: str) -> None:
        for name, text in answers.items():
            (self.folder / name).write_text(text + "\n")

    def plan(self, *workers: str) -> None:
        """For every worker, its starts: ``"75 100 0; 0 200 0"`` is status, step saved and seconds of two of them."""
        for number, starts in enumerate(workers):
            lines = [start.strip() for start in starts.split(";")]
            (self.folder / f"plan-{number}").write_text("\n".join(lines) + "\n")

    def run(self, script: str, *arguments: str, status: int = 0, answer: str | None = None, **env: str):
        """Runs it to its end and checks its exit status."""
        done = subprocess.run(
            [SCRIPTS / script, *arguments], env=self.env | env, text=True, capture_output=True, timeout=120, cwd=ROOT,
            **({"stdin": subprocess.DEVNULL} if answer is None else {"input": answer}),
        )
        assert done.returncode == status, (script, done.returncode, done.stdout, done.stderr)
        return done

    def calls(self, *beginning: str) -> list[list[str]]:
        """The calls of gcloud that begin so."""
        path = self.folder / "calls"
        lines = [json.loads(line)[1:] for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line[: len(beginning)] == list(beginning)]

    def kinds(self) -> list[str]:
        """What was asked of gcloud, in few words; repeated questions once."""
        kinds = [" ".join(call[2:4] if call[0] == "compute" else call[:2]) for call in self.calls()]
        return [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]

    def started(self, worker: int) -> list[str]:
        path = self.folder / f"started-{worker}"
        return path.read_text().splitlines() if path.exists() else []

    def settled(self, *states: str) -> list[str]:
        """Waits until every worker's state is one of these."""
        for _ in range(200):
            seen = [
                subprocess.run(["bash", "worker.sh", "state"], cwd=home, text=True, capture_output=True,
                               env=self.env | {"HOME": str(home), "HOSTNAME": f"h-w-{home.name[-1]}"}).stdout.split("\n")[0]
                for home in sorted(self.folder.glob("worker-*"))
            ]
            if all(any(state in line for state in states) for line in seen):
                return seen
            time.sleep(0.05)
        raise AssertionError(seen)


READY = "READY,HEALTHY,2,2026-01-01T00:00:00.5Z,v5litepod-8"


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path / "cloud")
    yield cloud
    for pid in cloud.folder.glob("*/bert_jax_job/pid"):  # nothing of a failed test stays behind
        for number in pid.read_text().split():
            try:
                os.kill(int(number), signal.SIGKILL)
            except ProcessLookupError:
                pass


