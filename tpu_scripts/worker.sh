#!/usr/bin/env bash
# What happens on a worker. setup.sh copies it there; the other scripts call it through ssh.
# Exit status: 0 done; 75 failed, may work the next time; 78 refused, something must be put right first.
set -euo pipefail
job=$HOME/bert_jax_job
worker=${HOSTNAME##*-} # Cloud TPU names its hosts t1v-n-...-w-3
lock_file=${LIBTPU_LOCK_FILE:-/tmp/libtpu_lockfile}

refuse() { end 78 "$*"; }
end() {
  printf 'worker %s: error: %s\n' "$worker" "${*:2}" >&2
  exit "$1"
}
# quietly WHAT COMMAND...: its output only matters when it fails, and then the last line does.
quietly() {
  local log=$job/logs/setup.log
  printf '\n$ %s\n' "${*:2}" >>"$log"
  "${@:2}" >>"$log" 2>&1 || end 75 "$1 failed: $(grep -v '^[[:space:]]*$' "$log" | tail -n 1) (all of it: $log)"
}

setup() { # BUCKET DATA WORKDIR GCSFUSE_VERSION
  local bucket=$1 data=$2 workdir=$3 version=$4 probe
  if [[ $(alive) ]]; then end 75 "a run is under way (pid $(alive)): stop.sh first"; fi
  rm -rf "$job/ready" "$job/source" # no file of an older source may stay
  # Where gcsfuse has died, its mount is in the way.
  mountpoint --quiet "$job/bucket" || fusermount -uz "$job/bucket" 2>/dev/null || :
  mkdir -p "$job/source" "$job/data" "$job/bucket" "$job/logs"

  # Ubuntu 22.04 of the TPU images has Python 3.10. uv brings a newer one without root, and takes the system's where it will do.
  if ! command -v uv >/dev/null && [[ ! -x $HOME/.local/bin/uv ]]; then
    python3 -m pip install --quiet --user uv >>"$job/logs/setup.log" 2>&1 ||
      quietly "installing uv" python3 -m pip install --quiet --user --break-system-packages uv
  fi
  PATH=$HOME/.local/bin:$PATH
  [[ -x $job/venv/bin/python ]] || quietly "making the environment" uv venv --python '>=3.11,<3.14' "$job/venv"
  quietly "unpacking the source" tar --extract --gzip --file="$HOME/source.tar.gz" --directory="$job/source"
  quietly "installing bert_jax" uv pip install --python "$job/venv/bin/python" --editable "$job/source[tpu]"

  if ! command -v gcsfuse >/dev/null; then
    local package=gcsfuse_${version}_amd64.deb
    quietly "downloading gcsfuse $version" curl --fail --location --silent --show-error --retry 5 --output "/tmp/$package" \
      "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$version/$package"
    # A fresh VM updates itself and holds the lock of apt for minutes.
    quietly "installing gcsfuse" sudo apt-get install --yes -o DPkg::Lock::Timeout=900 "/tmp/$package"
  fi
  if mountpoint --quiet "$job/bucket" && [[ $(cat "$job/mounted" 2>/dev/null) != "$bucket" ]]; then
    quietly "unmounting the bucket of before" fusermount -u "$job/bucket"
  fi
  if ! mountpoint --quiet "$job/bucket"; then
    # The hosts write one checkpoint together: none may go by what it remembers of a folder (60 seconds by default).
    quietly "mounting gs://$bucket" gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
      "$bucket" "$job/bucket"
    echo "$bucket" >"$job/mounted"
  fi
  probe=$job/bucket/$workdir/.probe-$worker
  { mkdir -p "$job/bucket/$workdir" && echo probe >"$probe" && rm "$probe"; } 2>>"$job/logs/setup.log" ||
    refuse "gs://$bucket/$workdir cannot be written ($(tail -n 1 "$job/logs/setup.log" | sed 's/.*: //')):" \
      "give the account of the TPU VMs roles/storage.objectUser on the bucket"

  quietly "copying the token store" gcloud storage rsync --recursive "gs://$bucket/$data" "$job/data"
  [[ -f $job/data/manifest.json ]] || refuse "gs://$bucket/$data holds no token store (manifest.json)"
  touch "$job/ready"
  echo "ready worker $worker"
}

devices() { # on all workers at once
  timeout 300 "$job/venv/bin/python" -c '
import jax
jax.distributed.initialize()
print(f"devices {jax.local_device_count()} of {jax.device_count()} on worker {jax.process_index()}", flush=True)
jax.distributed.shutdown()
'
}

# Pid of the run, or nothing. The name is compared too: numbers come back after a reboot.
alive() {
  local pid
  pid=$(cat "$job/pid" 2>/dev/null) || return 0
  if kill -0 "$pid" 2>/dev/null && grep -qa pretrain "/proc/$pid/cmdline" 2>/dev/null; then echo "$pid"; fi
}

# Whether the process that writes down how the run ended is still there: it copies the log first, which takes a moment.
supervised() {
  local pid
  pid=$(cat "$job/supervisor" 2>/dev/null) || return 1
  kill -0 "$pid" 2>/dev/null && grep -qa supervise "/proc/$pid/cmdline" 2>/dev/null
}

# Who holds the chips, from /proc: fuser is not on every image.
holders() {
  { find /proc/[0-9]*/fd '(' -lname '/dev/accel[0-9]*' -o -lname '/dev/vfio/[0-9]*' ')' 2>/dev/null || :; } |
    cut -d/ -f3 | sort -nu | tr '\n' ' '
}

start() { # WORKDIR ARGUMENT...: of bert-jax pretrain; detached from this ssh session, which may end
  local workdir=$1 others
  shift
  if [[ ! -f $job/ready ]] || ! mountpoint --quiet "$job/bucket"; then refuse "not set up, or rebooted since: run setup.sh"; fi
  if [[ $(alive) ]]; then end 75 "a run is under way already (pid $(alive))"; fi
  for _ in {1..100}; do if supervised; then sleep 0.1; else break; fi; done # the last one may be copying its log
  others=$(holders)
  [[ -z $others ]] || end 75 "the TPU is held by process $others: end it (sudo kill), then start again"
  # What a killed process leaves behind; later ones would find the TPU "already in use".
  if [[ -e $lock_file ]]; then rm -f "$lock_file" 2>/dev/null || sudo rm -f "$lock_file"; fi
  rm -f "$job/exit" "$job/pid"
  setsid bash "${BASH_SOURCE[0]}" supervise "$workdir" "$@" >>"$job/logs/run.log" 2>&1 </dev/null &
  for _ in {1..50}; do if [[ -s $job/pid || -s $job/exit ]]; then break; else sleep 0.1; fi; done
  echo "started worker $worker pid $(cat "$job/pid" 2>/dev/null || echo none)"
}

supervise() { # the run, its log, and the status it ended with
  local workdir=$1 status=0 copy
  shift
  echo "$$" >"$job/supervisor"
  copy=$job/bucket/$workdir/logs/$(date -u +%Y%m%dT%H%M%S)-worker-$worker.log
  trap : TERM HUP INT # the run saves and ends on SIGTERM; this process stays to write down how
  printf '\n===== %s worker %s: bert-jax pretrain %s\n' "$(date -u +%FT%TZ)" "$worker" "$*"
  copier "$copy" &
  watch_notices &
  (
    echo "$BASHPID" >"$job/pid"
    cd "$job/source"
    exec "$job/venv/bin/bert-jax" pretrain --data "$job/data" --workdir "$job/bucket/$workdir" "$@"
  ) || status=$?
  kill %1 %2 2>/dev/null || :
  printf '===== %s ended with status %s\n' "$(date -u +%FT%TZ)" "$status"
  copy_log "$copy"
  echo "$status" >"$job/exit.new"
  mv "$job/exit.new" "$job/exit"
}
# Maintenance and preemption are announced by the metadata server, the former a minute ahead. SIGTERM to one process is enough:
# all save at the same step and end with 75.
watch_notices() {
  local instance=http://metadata.google.internal/computeMetadata/v1/instance said pid
  while sleep "${NOTICE_SECONDS:-5}" && kill -0 "$$" 2>/dev/null; do
    said=$(curl -sf -m 5 -H 'Metadata-Flavor: Google' "$instance/maintenance-event" "$instance/preempted") || continue
    case $said in
      *ON_HOST_MAINTENANCE* | *TRUE*)
        pid=$(alive)
        [[ $pid ]] || return 0
        printf '===== %s notice: %s: asking the run to save\n' "$(date -u +%FT%TZ)" "${said//$'\n'/ }"
        kill -TERM "$pid" 2>/dev/null || :
        return 0
        ;;
    esac
  done
}
copier() {
  while sleep 60 && kill -0 "$$" 2>/dev/null; do copy_log "$1"; done # $$ is supervise
}
copy_log() { # a whole copy each time: an object in a bucket cannot grow
  mountpoint --quiet "$job/bucket" || return 0 # a folder made here would be in the way of mounting
  { mkdir -p "$(dirname "$1")" && tail -c 20000000 "$job/logs/run.log" >"$1"; } 2>/dev/null || :
}

state() { # one line: new, idle, running PID, or exited STATUS; from worker 0 also how far the run is
  local pid ending=
  pid=$(alive)
  if supervised; then ending=yes; fi # asked before its file is looked for: once it is gone, its file is there, or never will be
  if [[ $pid ]]; then
    echo "worker $worker running $pid"
  elif [[ ! -f $job/ready ]] || ! mountpoint --quiet "$job/bucket"; then
    echo "worker $worker new" # never set up, or rebooted
  elif [[ -s $job/exit ]]; then
    echo "worker $worker exited $(cat "$job/exit")"
  elif [[ $ending ]]; then
    echo "worker $worker running $(cat "$job/supervisor")" # ended a moment ago, its status not yet written
  elif [[ -s $job/pid ]]; then
    echo "worker $worker exited 137" # gone without a word
  else
    echo "worker $worker idle"
  fi
  [[ $worker != 0 ]] || { grep -ao 'step [0-9]*/[0-9].*' "$job/logs/run.log" 2>/dev/null | tail -n 1 | sed 's/^/at /' || :; }
}

stop() { # SIGTERM, a minute and a half to save, then SIGKILL
  local pid
  pid=$(alive)
  [[ $pid ]] || return 0
  kill -TERM "$pid" 2>/dev/null || :
  for _ in {1..900}; do if [[ $(alive) ]]; then sleep 0.1; else break; fi; done
  if [[ $(alive) ]]; then kill -KILL "$pid" 2>/dev/null || :; fi
  for _ in {1..100}; do if [[ -s $job/exit ]]; then break; else sleep 0.1; fi; done
  echo "stopped worker $worker"
}

errors() { # the last error that the run printed
  grep -a 'error:' "$job/logs/run.log" 2>/dev/null | tail -n 1 || :
}

profile() { # PORT MILLISECONDS FOLDER: a trace of the process that listens on PORT
  [[ $(alive) ]] || refuse "no run is under way: nothing to profile"
  if ! "$job/venv/bin/python" -c 'import xprof' 2>/dev/null; then
    PATH=$HOME/.local/bin:$PATH quietly "installing xprof" uv pip install --python "$job/venv/bin/python" xprof
  fi
  mkdir -p "$job/profile/$3"
  # The client of the profiler must not take the chips from the run.
  JAX_PLATFORMS=cpu quietly "tracing (was the run started with --profiler-port $1?)" timeout "$(($2 / 1000 + 120))" \
    "$job/venv/bin/python" -m jax.collect_profile --no_perfetto_link --log_dir "$job/profile/$3" "$1" "$2"
}

command=${1:-}
case $command in
  setup | devices | start | supervise | state | stop | errors | profile) "$@" ;;
  *) refuse "no command $command" ;;
esac
