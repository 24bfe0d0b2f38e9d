"""gpu_box.sh and slurm.sbatch run here, with a bert-jax that ends as it is told and stand-ins for the driver and for SLURM."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.tpu_scripts.conftest import CHECKPOINTS, SCRIPTS

BERT_JAX = "#!/usr/bin/env bash" + CHECKPOINTS + r"""
echo "$*" >>"$FOLDER/started-${SLURM_PROCID:-0}"
read -r status step seconds <"$FOLDER/plan-${SLURM_PROCID:-0}"; sed -i 1d "$FOLDER/plan-${SLURM_PROCID:-0}"
checkpoints=$FOLDER/run/checkpoints
trap 'save 77; exit 75' TERM
if ((${SLURM_PROCID:-0} == 0)); then begin; save "$step"; fi
end=$((SECONDS + seconds)); while ((SECONDS < end)); do sleep 0.05; done
exit "$status"
"""
# srun: the command once for every task; at SIGTERM it kills all of them (_srun_signal_mgr in SLURM's src/srun/srun_job.c); the
# highest status comes back.
SRUN = r"""#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "$1" >>"$FOLDER/srun"; shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i setsid "$@" & tasks+=("$!"); done
echo "${tasks[@]}" >"$FOLDER/tasks"
trap 'for t in "${tasks[@]}"; do kill -KILL -- "-$t"; done' TERM
worst=0
for t in "${tasks[@]}"; do
  while :; do status=0; wait "$t" || status=$?; kill -0 "$t" 2>/dev/null || break; done
  ((status <= worst)) || worst=$status
done
exit "$worst"
"""
# scontrol: a job that was cancelled and still saves comes back from the queue, unless only "Incomplete" ones are asked for.
SCONTROL = r"""#!/usr/bin/env bash
[[ $1 == requeue ]] || exit 1
state=$(cat "$FOLDER/state" 2>/dev/null || echo RUNNING)
if [[ $2 == Incomplete && $state != RUNNING ]]; then exit 0; fi
echo "${@: -1}" >>"$FOLDER/requeued"
"""


@pytest.fixture
def box(tmp_path):
    """A folder with a token store, an environment whose bert-jax follows plan-0, plan-1, and the stand-ins."""
    bin_ = tmp_path / "bin"
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    bin_.mkdir()
    for path, text in {
        bin_ / "nvidia-smi": '#!/bin/sh\necho "${DRIVER:-570.86.10}"\necho 570.86.10\n',
        bin_ / "srun": SRUN,
        bin_ / "scontrol": SCONTROL,
        bin_ / "python3": f'#!/bin/sh\necho "python3 $*" >>"$FOLDER/made"\n[ "$2" != venv ] || cp -r "$FOLDER/venv" "$3"\n'
                          f'[ "$1" != -c ] || exec {sys.executable} "$@"\n',
        tmp_path / "venv/bin/bert-jax": BERT_JAX,
        tmp_path / "venv/bin/pip": '#!/bin/sh\necho "pip $*" >>"$FOLDER/made"\n',
        tmp_path / "venv/bin/python": "#!/bin/sh\nexit ${NO_GPU:-0}\n",
    }.items():
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def environment(box, **more):
    return {
        "PATH": f"{box / 'bin'}:/usr/bin:/bin", "HOME": str(box), "FOLDER": str(box), "DATA": str(box / "store"),
        "WORKDIR": str(box / "run"), "CONFIG": "configs/pretrain/bert_base_128.py", "VENV": str(box / "venv"),
    } | more


def run(box, script, *arguments, status=0, **env):
    done = subprocess.run([SCRIPTS / script, *arguments], env=environment(box, **env), cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done.stderr


def plan(box, *tasks):
    for number, starts in enumerate(tasks):
        (box / f"plan-{number}").write_text("\n".join(starts) + "\n")


def starts(box, task=0):
    return (box / f"started-{task}").read_text().splitlines()


def test_gpu_box_goes_on_after_75_and_after_a_crash(box):
    plan(box, ["75 10 0", "137 20 0", "0 - 0"])
    text = run(box, "gpu_box.sh", "--", "--set", "train.steps=9")
    line = f"pretrain --config configs/pretrain/bert_base_128.py --data {box}/store --workdir {box}/run --set train.steps=9"
    assert starts(box) == [line] * 3
    assert "status 75: going on" in text and "status 137: going on" in text


def test_gpu_box_makes_the_environment_once(box):
    plan(box, ["0 - 0", "0 - 0"])
    for _ in range(2):
        run(box, "gpu_box.sh", VENV=str(box / "new"))
    made = (box / "made").read_text()
    assert made.count("-m venv") == 1 and f"pip install --quiet --editable {ROOT}[cuda]" in made


def test_gpu_box_stops_at_refusal_and_without_progress(box):
    plan(box, ["1 10 0"])
    run(box, "gpu_box.sh", status=1)
    assert len(starts(box)) == 1
    plan(box, ["75 - 0"] * 9)
    text = run(box, "gpu_box.sh", "--max-starts=2", status=1)
    assert "started 2 times without a new checkpoint (newest: 10)" in text and len(starts(box)) == 3


@pytest.mark.slow
def test_gpu_box_does_not_count_a_save_cut_short_as_progress(box):
    plan(box, ["137 10 0", "137 20~ 0", "137 - 0", "137 20~ 0", "137 - 0", "0 30 0"])
    text = run(box, "gpu_box.sh", "--max-starts=3", status=1)
    assert "started 3 times without a new checkpoint (newest: 10)" in text and len(starts(box)) == 4


def test_gpu_box_says_what_is_missing(box):
    assert "the NVIDIA driver is 470.82: 525 or newer" in run(box, "gpu_box.sh", status=1, DRIVER="470.82")
    assert "does not see the GPU" in run(box, "gpu_box.sh", status=1, NO_GPU="1")
    assert "is no token store" in run(box, "gpu_box.sh", "--data=/nowhere", status=1)
    assert "no configuration none.py" in run(box, "gpu_box.sh", "--config=none.py", status=1)
    assert "WORKDIR is not set" in run(box, "gpu_box.sh", status=2, WORKDIR="")
    (box / "bin" / "nvidia-smi").unlink()
    assert "nvidia-smi is not installed" in run(box, "gpu_box.sh", status=1, PATH=f"{box / 'bin'}:{links(box)}")


def links(box) -> str:
    """The system's tools without those that this machine may happen to have: gcloud, nvidia-smi."""
    folder = box / "system"
    folder.mkdir()
    for name in ("bash", "env", "dirname", "cat", "mktemp", "grep", "sed", "sort", "tail", "find", "mkdir", "mv"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    return str(folder)


def test_gpu_box_passes_sigterm_on(box):
    plan(box, ["0 - 30"])
    process = subprocess.Popen([SCRIPTS / "gpu_box.sh"], env=environment(box), cwd=ROOT, text=True, stderr=subprocess.PIPE)
    wait_for(box / "started-0")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=20)
    assert process.returncode == 75 and (box / "run/checkpoints/77").is_dir() and len(starts(box)) == 1, text


def wait_for(path):
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(path)


SLURM = {"SLURM_JOB_ID": "42", "SLURM_NTASKS": "2", "SLURM_SUBMIT_DIR": str(ROOT)}


def test_slurm_finishes(box):
    plan(box, ["0 10 0"], ["0 - 0"])
    run(box, "slurm.sbatch", "--set", "train.steps=9", **SLURM)
    line = f"pretrain --config configs/pretrain/bert_base_128.py --data {box}/store --workdir {box}/run"
    assert starts(box, 1) == [f"{line} --distributed --set train.steps=9"]
    assert not (box / "requeued").exists()


def test_slurm_goes_back_into_the_queue_and_continues(box):
    plan(box, ["75 10 0", "0 20 0"], ["75 - 0", "0 - 0"])
    run(box, "slurm.sbatch", **SLURM)
    assert (box / "requeued").read_text() == "42\n"
    run(box, "slurm.sbatch", **SLURM, SLURM_RESTART_COUNT="1")
    assert len(starts(box)) == 2 and (box / "requeued").read_text() == "42\n"


def test_slurm_where_no_process_ever_began(box):
    """srun could not make the step: no process has written how it ended."""
    (box / "bin" / "srun").write_text("#!/usr/bin/env bash\necho 'srun: error: cannot create the step' >&2\nexit 1\n")
    text = run(box, "slurm.sbatch", **SLURM)
    assert "ended with status 1 (processes: no answer)" in text and (box / "requeued").read_text() == "42\n"


def test_a_bucket_in_the_environment_is_no_business_of_a_machine_s_own_paths(box):
    plan(box, ["0 10 0"], ["0 - 0"])
    run(box, "slurm.sbatch", BUCKET="mine", **SLURM)
    assert len(starts(box)) == 1


def test_slurm_does_not_count_a_save_cut_short_as_progress(box):
    plan(box, ["137 10 0", "137 20~ 0", "137 - 0", "137 20~ 0"], ["137 - 0"] * 4)
    for number in range(4):
        text = run(box, "slurm.sbatch", status=int(number == 3), MAX_STARTS="2", **SLURM)
    assert "started 2 times without a new checkpoint (newest: 10)" in text and len(starts(box)) == 3


def test_slurm_refusal_of_one_process_does_not_hide(box):
    plan(box, ["75 10 0"], ["1 - 0"])  # srun says 75, the highest
    assert "processes: 1 75" in run(box, "slurm.sbatch", status=1, **SLURM)
    assert not (box / "requeued").exists()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED"])
def test_slurm_saves_when_told_to_end_and_stays_cancelled(box, state, whole):
    """slurmstepd signals all processes of a task (proctrack/pgid), or the first one alone (proctrack/cgroup, the default)."""
    plan(box, ["0 - 30"], ["0 - 30"])
    process = subprocess.Popen(
        [SCRIPTS / "slurm.sbatch"], env=environment(box, **SLURM), cwd=ROOT, text=True, stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(box / "started-0"), wait_for(box / "started-1")
    time.sleep(0.3)
    (box / "state").write_text(state)
    for task in (box / "tasks").read_text().split():
        (os.killpg if whole else os.kill)(int(task), signal.SIGTERM)
    if state == "CANCELLED":  # and scancel the batch script's as well, srun's with it if it were in there
        os.killpg(process.pid, signal.SIGTERM)
    _, text = process.communicate(timeout=20)
    assert process.returncode == 0 and "processes: 75" in text, text
    assert (box / "run/checkpoints/77").is_dir() and (box / "requeued").exists() == (state == "RUNNING")
    assert "unless the job was cancelled" in text


def test_a_signal_after_all_have_saved_does_not_keep_the_job_from_the_queue(box):
    plan(box, ["75 10 0"], ["75 - 0"])
    (box / "bin" / "scontrol").write_text('#!/usr/bin/env bash\nkill -TERM $PPID\nsleep 0.2\necho 42 >"$FOLDER/requeued"\n')
    run(box, "slurm.sbatch", **SLURM)
    assert (box / "requeued").read_text() == "42\n"


def test_slurm_gives_up_and_says_what_is_missing(box):
    plan(box, ["137 - 0"] * 9, ["137 - 0"] * 9)
    for number in range(3):
        text = run(box, "slurm.sbatch", status=int(number == 2), MAX_STARTS="2", **SLURM)
    assert "started 2 times without a new checkpoint" in text
    assert "not inside SLURM" in run(box, "slurm.sbatch", status=1, **SLURM | {"SLURM_JOB_ID": ""})
    assert "submit it from the project's folder" in run(box, "slurm.sbatch", status=1, **SLURM | {"SLURM_SUBMIT_DIR": str(box)})
    assert "no bert-jax in" in run(box, "slurm.sbatch", status=1, VENV="/nowhere", **SLURM)
