#!/usr/bin/env bash
# Makes all workers ready to train; may be repeated. Exit status 75: try again; 1: something must be put right first.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "Installs this project on all workers, mounts the bucket, copies the token store, and counts the devices." \
  "PROJECT! ZONE! NAME! BUCKET! DATA! WORKDIR GCSFUSE_VERSION" "$@"
need gcloud timeout tar

manifest=$(gcloud_ask there storage ls "gs://$BUCKET/$DATA/manifest.json" "--project=$PROJECT")
[[ $manifest != ABSENT ]] ||
  fail "gs://$BUCKET/$DATA holds no token store: make one with bert-jax prepare," \
    "then gcloud storage rsync --recursive STORE gs://$BUCKET/$DATA"

node=$(slice)
[[ $node == READY,* ]] || {
  complain "the slice $NAME is ${node%%,*}, not READY: create.sh makes one"
  exit 75
}
IFS=, read -r _ _ workers _ accelerator <<<"$node"

# One source for all workers, kept: a slice that babysit.sh makes anew gets the code that the run began with.
source_archive=$(memory)/source.tar.gz
if [[ -f $source_archive && -n ${KEEP_SOURCE:-} ]]; then
  say "setting up the source of $(date -r "$source_archive" '+%F %T')"
else
  act mkdir -p "$(memory)"
  act tar --create --gzip --file="$source_archive" --directory="$root" --exclude=__pycache__ \
    bert_jax configs pyproject.toml setup.py README.md LICENSE
fi
act timeout 900 gcloud compute tpus tpu-vm scp "$source_archive" "$here/worker.sh" "$NAME:" "${place[@]}" --worker=all --quiet \
  --scp-flag=-oConnectTimeout=20 || {
  complain "copying to the workers failed: run it again"
  exit 75
}

say "installing on $workers workers; a first time takes minutes"
status=0
on_workers all 3600 "bash worker.sh setup $(quoted "$BUCKET" "$DATA" "$WORKDIR" "$GCSFUSE_VERSION")" || status=$?
case $status in
  0) ;;
  78) fail "a worker refused: its line is above" ;;
  *) complain "a worker failed (status $status): its line is above; running setup.sh again is safe" && exit 75 ;;
esac

# All workers at once: on a slice of several hosts no process sees its devices before all have come.
devices=$(devices_of "$accelerator")
answer=$(for ((i = 0; i < workers; i++)); do echo "devices $((devices / workers)) of $devices on worker $i"; done)
seen=$(ask_workers "$answer" all 600 "bash worker.sh devices") || {
  complain "JAX did not start on every worker: see above; 'run.sh' would fail too"
  exit 75
}
dry || { grep '^devices' <<<"$seen" || :; } | sort >&2
(($(grep -c "^devices $((devices / workers)) of $devices " <<<"$seen" || :) == workers)) ||
  fail "$accelerator is $devices devices on $workers workers, and not every worker sees its share: delete.sh, then create.sh"
say "ready: $workers workers, $devices devices. Next: run.sh"
