# shellcheck shell=bash
# What the scripts of this folder share: settings, flags, dry runs, and questions to gcloud. Sourced, never run.
#
# A setting comes from its flag, from the environment, from a file of NAME=VALUE lines (--settings), or from its default, in
# this order. Settings are exported, so that babysit.sh can call the other scripts without repeating them.
set -euo pipefail
exec 3>&1 # the commands of a dry run reach the reader even from inside $(...)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # used by the scripts that source this
root=$(dirname "$here")

dry() { [[ -n ${DRY_RUN:-} ]]; }
say() { dry || printf '%s\n' "$*" >&2; } # a dry run has nothing to tell: its answers are assumed
complain() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; }
fail() {
  complain "$*"
  exit 1
}
usage_error() {
  complain "$* (see ${0##*/} --help)"
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "bash 4.4 or newer is needed, this is $BASH_VERSION"

declare -A about=(
  [PROJECT]="Google Cloud project"
  [ZONE]="zone, as us-central1-a"
  [NAME]="name of the slice, of its request, and of the job"
  [ACCELERATOR_TYPE]="slice to ask for, as v5litepod-16"
  [RUNTIME_VERSION]="software of the TPU VMs; default: the one Google names for the accelerator"
  [PROVISIONING]="spot, on-demand or reserved"
  [SERVICE_ACCOUNT]="account that the TPU VMs act as; default: the project's compute account"
  [BUCKET]="bucket for the token store and the work directory, as gs://my-bucket"
  [DATA]="token store, a path inside the bucket"
  [WORKDIR]="work directory, a path inside the bucket; default: runs/NAME"
  [CONFIG]="configuration, a path inside this project"
  [PROFILER_PORT]="port of the profiler in every process; 0 starts none"
  [GCSFUSE_VERSION]="release of gcsfuse to install"
  [POLL]="seconds between looks"
  [MAX_STARTS]="starts without a new checkpoint, or failures of setup.sh in a row, after which to give up"
  [DELETE_AT_END]="delete the slice when the run has finished or was given up"
  [PRICE]="dollars for a chip and hour, to say what was spent"
  [WORKER]="number of the worker"
  [SECONDS_TRACED]="seconds to trace"
  [TO]="local folder to write to"
  [YES]="do not ask"
  [DRY_RUN]="print the commands that would run, and run nothing"
  [VENV]="virtual environment to make or use"
  [REST]="further arguments of bert-jax pretrain"
)
declare -A default=(
  [PROVISIONING]=spot [PROFILER_PORT]=0 [GCSFUSE_VERSION]=3.6.0 [POLL]=30 [MAX_STARTS]=5 [WORKER]=0 [SECONDS_TRACED]=5
)
declare -A switch=([YES]=1 [DRY_RUN]=1 [DELETE_AT_END]=1) # settings whose flag takes no value
declare -A flag=([SECONDS_TRACED]=--seconds)
for name in "${!about[@]}"; do
  [[ -n ${flag[$name]:-} ]] || { flag[$name]=--${name,,} && flag[$name]=${flag[$name]//_/-}; }
done
rest=()

# read_settings DESCRIPTION "NAME! NAME ..." ARGUMENT...: a name with ! must have a value.
read_settings() {
  local description=$1 wanted=" $2 DRY_RUN " name word value
  shift 2
  declare -A given=()
  unset YES # never from the environment
  while (($#)); do
    word=$1
    shift
    case $word in
      -h | --help) help "$description" "$wanted" && exit 0 ;;
      --settings | --settings=*)
        if [[ $word == *=* ]]; then value=${word#*=}; else
          (($#)) || usage_error "--settings needs a file"
          value=$1 && shift
        fi
        read_settings_file "$value"
        ;;
      --)
        [[ $wanted == *" REST "* ]] || usage_error "nothing may follow --"
        rest=("$@")
        break
        ;;
      --*)
        name=$(flag_name "${word%%=*}" "$wanted")
        [[ -n $name ]] || usage_error "no flag ${word%%=*}"
        if [[ -n ${switch[$name]:-} ]]; then
          [[ $word != *=* ]] || usage_error "${word%%=*} takes no value"
          value=1
        elif [[ $word == *=* ]]; then value=${word#*=}; else
          (($#)) || usage_error "$word needs a value"
          value=$1 && shift
        fi
        given[$name]=$value
        ;;
      *) usage_error "what is $word?" ;;
    esac
  done
  for name in "${!given[@]}"; do export "$name=${given[$name]}"; done
  for name in "${!file_settings[@]}"; do [[ -n ${!name:-} ]] || export "$name=${file_settings[$name]}"; done
  for name in "${!default[@]}"; do [[ -n ${!name:-} ]] || export "$name=${default[$name]}"; done
  if [[ -z ${WORKDIR:-} && -n ${NAME:-} && $wanted == *" NAME"* ]]; then WORKDIR=runs/$NAME; fi
  for name in $wanted; do
    [[ $name == *! ]] || continue
    name=${name%!}
    [[ -n ${!name:-} ]] || usage_error "$name is not set: give ${flag[$name]}, ${about[$name]}"
  done
  check_settings
}

declare -A file_settings=()
read_settings_file() {
  [[ -r $1 ]] || usage_error "cannot read the settings file $1"
  local line number=0
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ -z ${line//[[:space:]]/} || $line == \#* ]] && continue
    [[ $line =~ ^([A-Z_]+)=(.*)$ && -n ${about[${BASH_REMATCH[1]}]:-} ]] ||
      usage_error "$1, line $number: not a setting as NAME=VALUE: $line"
    file_settings[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
  done <"$1"
}

flag_name() {
  local name
  for name in $2; do
    [[ ${flag[${name%!}]} == "$1" && $name != REST ]] && printf '%s' "${name%!}" && return
  done
  return 0
}

help() {
  local name
  local more=""
  if [[ $2 == *" REST "* ]]; then more=" [-- ARGUMENT ...]"; fi
  printf '%s\n\nUsage: %s [--settings FILE] [FLAG ...]%s\n\n' "$1" "${0##*/}" "$more"
  printf 'Every flag can be set in the environment or in FILE as well, by the name in the last column.\n\n'
  for name in $2; do
    name=${name%!}
    if [[ $name == REST ]]; then
      printf '  %-20s %s\n' '-- ...' "${about[REST]}"
    else
      printf '  %-20s %s%s [%s]\n' "${flag[$name]}" "${about[$name]}" "${default[$name]:+ (default ${default[$name]})}" "$name"
    fi
  done
}

check_settings() {
  local name
  if [[ $wanted == *" BUCKET"* && -n ${BUCKET:-} ]]; then # of a script that has none, paths are those of the machine
    BUCKET=${BUCKET#gs://} && BUCKET=${BUCKET%/}
    [[ $BUCKET =~ ^[a-z0-9][a-z0-9._-]+$ ]] || usage_error "BUCKET is $BUCKET: a bucket's name, without a path"
    for name in DATA WORKDIR; do
      [[ ! ${!name:-} =~ ^(gs://|/|\.\.?/)|\.\. ]] ||
        usage_error "$name is ${!name}: a path inside the bucket, without gs:// and .."
    done
  fi
  for name in POLL MAX_STARTS WORKER SECONDS_TRACED PROFILER_PORT; do
    [[ ${!name} =~ ^[0-9]+$ ]] || usage_error "$name is ${!name}: a whole number is needed"
  done
  [[ -z ${PRICE:-} || $PRICE =~ ^[0-9]+(\.[0-9]+)?$ ]] || usage_error "PRICE is $PRICE: dollars as 1.20"
  [[ $PROVISIONING =~ ^(spot|on-demand|reserved)$ ]] || usage_error "PROVISIONING is $PROVISIONING: spot, on-demand or reserved"
  export BUCKET WORKDIR
  place=("--project=${PROJECT:-}" "--zone=${ZONE:-}")
}

# need TOOL...: they exist, or one line says which does not.
need() {
  local tool
  dry && return
  for tool; do command -v "$tool" >/dev/null || fail "$tool is not installed, or not on PATH"; done
}

quoted() {
  local word line=()
  for word; do [[ $word =~ ^[A-Za-z0-9_./:=@%+,~-]+$ ]] && line+=("$word") || line+=("${word@Q}"); done
  printf '%s' "${line[*]}"
}

# act COMMAND...: runs it, or prints it in a dry run. ask ANSWER COMMAND...: its output, or ANSWER in a dry run.
act() { if dry; then printf '%s\n' "$(quoted "$@")" >&3; else "$@" </dev/null; fi; }
ask() {
  if dry; then
    printf '%s\n' "$(quoted "${@:2}")" >&3
    printf '%s\n' "$1"
  else "${@:2}" </dev/null; fi
}

# gcloud_ask ANSWER COMMAND...: as ask, where a thing that does not exist is the answer ABSENT. Any other error is one line and
# status 1 when it would come again; else 75: a server, a token or the network failed, which passes.
gcloud_ask() {
  local output errors all line status=0
  errors=$(mktemp)
  output=$(ask "$1" gcloud "${@:2}" 2>"$errors") || status=$?
  all=$(<"$errors")
  line=$(grep -m1 ERROR "$errors" || tail -n 1 "$errors")
  rm -f "$errors"
  if ((status == 0)); then
    printf '%s\n' "$output"
  elif grep -qE 'PERMISSION_DENIED|\b403\b' <<<"$line"; then
    fail "permission denied: $line"
  elif grep -qiE 'NOT_FOUND|not found|does not exist|matched no objects|\b404\b' <<<"$all"; then
    echo ABSENT
  elif ((status == 2)) || grep -qE 'INVALID_ARGUMENT|HTTPError 400|active account' <<<"$line"; then
    fail "gcloud: $line"
  else
    complain "gcloud: ${line:-exit status $status}; run it again"
    exit 75
  fi
}

# State of the queued resource: ABSENT, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED ... In a dry run: $1.
request_state() {
  gcloud_ask "$1" compute tpus queued-resources describe "$NAME" "${place[@]}" '--format=value(state.state)'
}

# The slice as state,health,workers,created,accelerator, or ABSENT.
slice() {
  gcloud_ask 'READY,HEALTHY,4,2000-01-01T00:00:00Z,v5litepod-16' compute tpus tpu-vm describe "$NAME" "${place[@]}" \
    '--format=csv[no-heading](state,health,networkEndpoints.len(),createTime,acceleratorType.basename())'
}

# Dead connections end after a minute instead of hanging, which is what --worker=all does when one worker goes away.
ssh_flags=(--ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=15 --ssh-flag=-oServerAliveCountMax=4)

# on_workers WORKER SECONDS COMMAND: runs it by ssh on one worker or on "all"; gcloud returns the first status that is not 0.
on_workers() {
  act timeout "$2" gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" "--worker=$1" --quiet "${ssh_flags[@]}" "--command=$3"
}
ask_workers() { # the same, with an answer for dry runs first
  ask "$1" timeout "$3" \
    gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" "--worker=$2" --quiet "${ssh_flags[@]}" "--command=$4"
}

# Written last into a checkpoint's folder: one without it is a save under way, or one that was cut short.
complete=_CHECKPOINT_METADATA

# Step of the newest checkpoint in the bucket that was saved completely, or none.
newest_checkpoint() {
  local list
  list=$(gcloud_ask "checkpoints/5000/$complete" storage ls "gs://$BUCKET/$WORKDIR/checkpoints/*/$complete" \
    "--project=$PROJECT") || return
  newest_step <<<"$list"
}
newest_step() { # of the paths of such files
  local step
  step=$(sed -n "s:.*/\([0-9][0-9]*\)/$complete\$:\1:p" | sort -n | tail -n 1)
  printf '%s\n' "${step:-none}"
}

local_checkpoint() { # the same of a work directory on this machine
  { find "$1/checkpoints" -mindepth 2 -maxdepth 2 -type f -name "$complete" 2>/dev/null || :; } | newest_step
}

chips_of() { # what is paid for: v2 to v4 and v5p are named by cores, two to a chip
  local count=${1##*-}
  case $1 in
    v2-* | v3-* | v4-* | v5p-*) echo $((count / 2)) ;;
    *) echo "$count" ;;
  esac
}

devices_of() { # what jax counts: chips, but the cores of v2 and v3
  case $1 in
    v2-* | v3-*) echo "${1##*-}" ;;
    *) chips_of "$1" ;;
  esac
}

# What this machine remembers of the job: the source that was set up, the starts, the slices that were paid for.
memory() { printf '%s/bert_jax/%s' "${XDG_STATE_HOME:-$HOME/.local/state}" "$PROJECT.$ZONE.$NAME"; }

# count_start FOLDER NEWEST: counts starts since the last new checkpoint; fails when there were MAX_STARTS already.
count_start() {
  local starts=0 before=none
  mkdir -p "$1"
  if [[ -f $1/starts ]]; then read -r starts before <"$1/starts"; fi
  [[ $before == "$2" ]] || starts=0
  ((starts < MAX_STARTS)) || fail "started $starts times without a new checkpoint (newest: $2): not starting again;" \
    "look at the logs, then remove $1/starts"
  printf '%s %s\n' $((starts + 1)) "$2" >"$1/starts.new"
  mv "$1/starts.new" "$1/starts"
}

# forward COMMAND...: runs it and passes SIGTERM on to it, and SIGINT as SIGTERM: bert-jax then saves and ends. Returns its
# status, and leaves in "asked" whether it was asked to end. await COMMAND...: the same, but tells it nothing.
# shellcheck disable=SC2034 # for the caller
asked=""
settled=- # what a signal does after the command: it ends the script, or with nothing here is of no matter any more
forward() { attend tell "$@"; }
await() { attend : "$@"; }
tell() { kill -TERM "$1" 2>/dev/null || :; }
attend() { # WHAT COMMAND...: what a signal does with the number of the process
  local child status again=0 what=$1
  "${@:2}" </dev/null &
  child=$!
  trap 'asked=1; "$what" "$child"' TERM INT
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break # a signal ends wait, not the command
  done
  if ((status > 128)); then # of the signal, or of the command? Asked again, bash knows, or has forgotten what it told already
    wait "$child" 2>/dev/null || again=$?
    ((again == 127)) || status=$again
  fi
  # shellcheck disable=SC2064 # what it is now
  trap "$settled" TERM INT
  return "$status"
}
