#!/usr/bin/env bash
# Asks for a slice and waits until it is there. Called again, it goes on waiting for the request that exists. Exit status 75:
# try again; 1: something must be put right first.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "Creates a Cloud TPU slice through a queued resource, and waits until it is ACTIVE." \
  "PROJECT! ZONE! NAME! ACCELERATOR_TYPE! RUNTIME_VERSION PROVISIONING SERVICE_ACCOUNT POLL" "$@"
need gcloud timeout

# https://cloud.google.com/tpu/docs/runtimes
case ${RUNTIME_VERSION:-}/$ACCELERATOR_TYPE in
  /v6e-*) RUNTIME_VERSION=v2-alpha-tpuv6e ;;
  /v5p-*) RUNTIME_VERSION=v2-alpha-tpuv5 ;;
  /v5litepod-*) RUNTIME_VERSION=v2-alpha-tpuv5-lite ;;
  /v[234]-*) RUNTIME_VERSION=tpu-ubuntu2204-base ;;
  /*)
    usage_error "ACCELERATOR_TYPE is $ACCELERATOR_TYPE: v2-, v3-, v4-, v5litepod-, v5p- or v6e- and a number;" \
      "for others set RUNTIME_VERSION"
    ;;
esac

state=$(request_state ABSENT)
if [[ $state == ABSENT ]]; then
  options=("--node-id=$NAME" "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION"
    --scopes=https://www.googleapis.com/auth/cloud-platform)
  case $PROVISIONING in
    spot) options+=(--spot) ;;
    reserved) options+=(--reserved) ;;
  esac
  [[ -z ${SERVICE_ACCOUNT:-} ]] || options+=("--service-account=$SERVICE_ACCOUNT")
  status=0
  answer=$(gcloud_ask "" compute tpus queued-resources create "$NAME" "${place[@]}" "${options[@]}" --async --quiet) ||
    status=$?
  [[ $answer != ABSENT ]] || { complain "gcloud finds no such project, zone, accelerator or runtime" && status=1; }
  if ((status)); then
    complain "the request was not accepted: quota, zone and accelerator are the usual reasons"
    exit "$status"
  fi
  say "asked for $ACCELERATOR_TYPE ($PROVISIONING) as $NAME; the queue may take hours. Ctrl-C leaves the request there"
else
  say "$NAME exists already, in state $state"
fi

# A slice is READY some seconds after its request is ACTIVE.
lost() {
  complain "$*: delete.sh, then create.sh again"
  exit 75
}
looks=0 shown=""
while :; do
  status=0
  { state=$(request_state ACTIVE) && { [[ $state != ACTIVE ]] || node=$(slice); }; } || status=$?
  ((status != 1)) || exit 1
  if ((status)); then # in days of waiting a question fails now and then
    say "$(date +%T) no answer from gcloud; looking again"
    sleep "$POLL"
    continue
  fi
  case $state in
    ACTIVE)
      [[ $node != READY,* ]] || break
      state="ACTIVE, slice ${node%%,*}"
      [[ $node != PREEMPTED,* && $node != TERMINATED,* ]] || lost "$NAME is lost already (${node%%,*})"
      ;;
    FAILED | SUSPENDED)
      reason=$(gcloud_ask "" compute tpus queued-resources describe "$NAME" "${place[@]}" \
        '--format=value(state.failedData.error.message)') || reason=""
      lost "the request $NAME is $state${reason:+ ($reason)}"
      ;;
    ABSENT) lost "the request $NAME is gone" ;;
  esac
  if [[ $state != "$shown" ]] || ((looks % 20 == 0)); then say "$(date +%T) $state"; fi
  shown=$state looks=$((looks + 1))
  sleep "$POLL"
done
IFS=, read -r _ _ _ _ accelerator <<<"$node"
dry || [[ $accelerator == "$ACCELERATOR_TYPE" ]] ||
  fail "$NAME is a $accelerator, not a $ACCELERATOR_TYPE: delete.sh first, or another NAME"
say "$NAME is ACTIVE: it costs money from now on. Next: setup.sh"
