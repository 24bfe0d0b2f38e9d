#!/usr/bin/env bash
# Brings a run to its end. It keeps nothing in mind that it could not look up, so it may itself be stopped and started anew,
# and it takes over whatever exists: nothing, a waiting request, a slice without software, a run under way.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
wanted="PROJECT! ZONE! NAME! ACCELERATOR_TYPE! RUNTIME_VERSION PROVISIONING SERVICE_ACCOUNT BUCKET! DATA! WORKDIR CONFIG!"
read_settings "Watches a run to its end: makes a lost slice anew, starts the run again unless it finished or refused." \
  "$wanted PROFILER_PORT GCSFUSE_VERSION POLL MAX_STARTS DELETE_AT_END REST" "$@"
need gcloud timeout flock tar
patience=10 # looks that a worker may not answer, and that some workers may have ended and others not, before something is done

note() { say "$(date -u +%FT%TZ) $*"; }
finish() { # STATUS WORDS
  note "${*:2}"
  if [[ -n ${DELETE_AT_END:-} ]]; then
    for ((try = 1; ; try++)); do
      if "$here/delete.sh" --yes; then break; fi
      ((try < patience)) || fail "the slice is still there and costs money: run delete.sh"
      sleep "$POLL"
    done
  else
    note "the slice is still there and costs money: delete.sh"
  fi
  exit "$1"
}
# begin create | setup | run: does what is missing, from there to a run that has started. A slice is asked for as often as need
# be, since waiting costs nothing; setups that fail and starts are counted.
begin() {
  local newest status=0
  newest=$(newest_checkpoint) || status=$?
  if ((status == 0)) && [[ $1 == create ]]; then "$here/create.sh" || status=$?; fi
  if ((status == 0)) && [[ $1 != run ]]; then
    if [[ $newest != none ]]; then export KEEP_SOURCE=1; fi # a run that has begun goes on with the code it began with
    "$here/setup.sh" || status=$?
    if ((status == 75 && ++setups >= MAX_STARTS)); then finish 1 "giving up: setup.sh failed $setups times in a row"; fi
    ((status)) || setups=0
  fi
  if ((status == 0)); then
    (count_start "$(memory)" "$newest") || finish 1 "giving up"
    note "start $(cut -d' ' -f1 "$(memory)/starts") since checkpoint $newest"
    "$here/run.sh" -- "${rest[@]}" || status=$?
    ((status)) || watched=1
  fi
  if ((status == 1 || status == 2)); then finish 1 "refused: starting again would not help"; fi
  return "$status"
}
remove() { # a lost slice
  note "$1: making the slice anew"
  "$here/delete.sh" --yes || return 75
  while state=$(request_state ABSENT) && [[ $state != ABSENT ]]; do sleep "$POLL"; done
}

if dry; then # what happens to a job that does not exist yet
  newest_checkpoint >/dev/null
  "$here/create.sh" && "$here/setup.sh" && "$here/run.sh" -- "${rest[@]}"
  request_state ACTIVE >/dev/null && slice >/dev/null
  ask_workers "" all 300 "bash worker.sh state" >/dev/null
  exit
fi

mkdir -p "$(memory)"
exec 9>"$(memory)/babysit.lock"
flock --nonblock 9 || fail "another babysit.sh watches $NAME already"

# How a run ended counts when it was seen running, or was started here: else it is an old run, which is to be continued. One
# that has finished only evaluates and finishes again.
watched=""
silent=0 uneven=0 setups=0 shown=""
while :; do
  if ! state=$(request_state ACTIVE) || ! node=$(slice); then
    note "no answer from gcloud; looking again"
    sleep "$POLL"
    continue
  fi
  case $state/$node in
    ABSENT/*) begin create || sleep "$POLL" ;;
    FAILED/* | SUSPENDED/* | ACTIVE/PREEMPTED,* | ACTIVE/TERMINATED,* | ACTIVE/STOPPED,* | ACTIVE/ABSENT)
      remove "$NAME was lost (request $state, slice ${node%%,*})" && continue
      sleep "$POLL"
      ;;
    ACTIVE/READY,*)
      IFS=, read -r _ _ workers _ _ <<<"$node"
      if ! seen=$(ask_workers "" all 300 "bash worker.sh state 2>/dev/null || echo worker 0 new"); then
        silent=$((silent + 1))
        note "a worker does not answer ($silent of $patience)"
        if ((silent >= patience)); then
          silent=0
          remove "a worker of $NAME does not answer" || :
        fi
        sleep "$POLL"
        continue
      fi
      silent=0
      running=$(grep -c '^worker [0-9]* running' <<<"$seen" || :)
      if ((running)); then watched=1; fi
      refused=$(grep -E '^worker [0-9]* exited [12]$' <<<"$seen" | head -n 1 || :)
      progress=$(sed -n 's/^at //p' <<<"$seen" | tail -n 1)
      summary="$running of $workers workers run${progress:+; $progress}"
      if [[ $summary != "$shown" ]]; then note "$summary"; fi
      shown=$summary
      if [[ $refused && $watched ]]; then
        on_workers all 300 "bash worker.sh errors" >&2 || :
        on_workers all 300 "bash worker.sh stop" || :
        finish 1 "${refused/exited/ended with status}: starting again would not help"
      elif [[ $watched ]] && (($(grep -c '^worker [0-9]* exited 0$' <<<"$seen" || :) == workers)); then
        finish 0 "finished"
      elif ((running == workers)); then
        uneven=0
      elif ((running)) && ((uneven < patience)); then
        uneven=$((uneven + 1)) # the others end by themselves when they miss a peer
      else
        uneven=0
        grep '^worker [0-9]* exited' <<<"$seen" | sort >&2 || :
        on_workers all 300 "bash worker.sh stop" >/dev/null || :
        if grep -q '^worker [0-9]* new$' <<<"$seen"; then begin setup || :; else begin run || :; fi
      fi
      sleep "$POLL"
      ;;
    *) # on its way up or down: waiting, provisioning, suspending, repairing
      if [[ $state/$node != "$shown" ]]; then note "request $state, slice ${node%%,*}"; fi
      shown=$state/$node
      if [[ $state != ACTIVE && $state != SUSPENDING && $state != DELETING ]]; then
        begin create || sleep "$POLL"
      else sleep "$POLL"; fi
      ;;
  esac
done 9>&- # a child that outlives this script must not hold its lock
