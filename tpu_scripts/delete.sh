#!/usr/bin/env bash
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "Deletes the slice and its request, after showing them and asking. The bucket is never touched." \
  "PROJECT! ZONE! NAME! YES" "$@"
need gcloud

state=$(request_state ACTIVE)
node=$(slice)
if [[ $state == ABSENT && $node == ABSENT ]]; then
  say "$NAME does not exist in $ZONE: nothing to delete, nothing costs money there"
  exit 0
fi
IFS=, read -r ready _ workers created accelerator <<<"$node"
say "to be deleted in project $PROJECT, zone $ZONE:"
say "  request $NAME, $state"
if [[ $node != ABSENT ]]; then
  say "  slice   $NAME, $ready, $accelerator, $workers workers, made $created; what lies on its disks is lost"
fi
say "the bucket stays, and all checkpoints in it"
if [[ -z ${YES:-} ]] && ! dry; then
  [[ -t 0 || -p /dev/stdin ]] || fail "not deleted: nobody can be asked here; give --yes"
  read -rp "type the name ($NAME) to delete it: " answer || answer=""
  [[ $answer == "$NAME" ]] || fail "not deleted: the answer was not $NAME"
fi
if [[ $state == ABSENT ]]; then # a slice without a request: not made by create.sh, or left by a request that is gone
  act gcloud compute tpus tpu-vm delete "$NAME" "${place[@]}" --quiet || fail "not deleted: see gcloud's line above"
else
  act gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet ||
    fail "not deleted: see gcloud's line above"
fi
if ! dry && [[ $node != ABSENT ]] && from=$(date -d "$created" +%s 2>/dev/null); then
  mkdir -p "$(memory)"
  printf '%s %s %s\n' "$from" "$(date +%s)" "$(chips_of "$accelerator")" >>"$(memory)/slices"
fi
say "deleted"
