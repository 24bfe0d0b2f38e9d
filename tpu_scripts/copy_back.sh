#!/usr/bin/env bash
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "Copies the work directory from the bucket to this machine. Resumable; nothing is deleted on either side." \
  "PROJECT! NAME BUCKET! WORKDIR! TO!" "$@"
need gcloud

# choose: sets "copy", the command. Of the folders named by a step it takes those that are complete at this moment.
choose() {
  local list
  list=$(gcloud_ask "gs://$BUCKET/$WORKDIR/checkpoints/5000/$complete" \
    storage ls "gs://$BUCKET/$WORKDIR/*/*/$complete" "--project=$PROJECT")
  list=$(sed -n "s:.*/\([^/]*/[0-9][0-9]*\)/$complete\$:\1:p" <<<"$list" | paste -sd'|')
  copy=(gcloud storage rsync --recursive "--exclude=(?!($list)/)[^/]+/[0-9]+/.*|.*\.probe-.*"
    "gs://$BUCKET/$WORKDIR" "$TO" "--project=$PROJECT")
}
experiment=$(gcloud_ask there storage ls "gs://$BUCKET/$WORKDIR/experiment.json" "--project=$PROJECT")
[[ $experiment != ABSENT ]] ||
  fail "gs://$BUCKET/$WORKDIR is no work directory: it has no experiment.json"
act mkdir -p "$TO"
choose
act "${copy[@]}" || fail "copying was interrupted: the same command goes on where it stopped"
# A run that is under way adds and removes checkpoints meanwhile: look again until nothing is left to do.
for ((round = 1; round <= 3; round++)); do
  choose
  left=$(ask "" "${copy[@]}" --dry-run 2>&1) || fail "the copy could not be compared with the bucket: run it again"
  grep -q 'Would copy' <<<"$left" || break
  act "${copy[@]}" || fail "copying was interrupted: the same command goes on where it stopped"
  ((round < 3)) || fail "the run writes faster than this copies: stop it first, or run this again"
done
say "$TO is a copy of gs://$BUCKET/$WORKDIR. To PyTorch: bert-jax convert --from $(quoted "$TO") --to EXPORT --format hf"
