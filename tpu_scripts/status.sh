#!/usr/bin/env bash
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "Shows the request, the slice, the workers, step and loss, the newest checkpoint, and the money spent so far." \
  "PROJECT! ZONE! NAME! BUCKET WORKDIR PRICE" "$@"
need gcloud timeout

line() { dry || printf '%-11s %s\n' "$1" "$2"; }
state=$(request_state ACTIVE)
line request "$state"
node=$(slice)
progress=""
if [[ $node == ABSENT ]]; then
  line slice "none"
else
  IFS=, read -r ready health workers created accelerator <<<"$node"
  line slice "$ready ${health:+$health, }$accelerator, $workers workers, since $created"
  if [[ $ready == READY ]]; then
    if seen=$(ask_workers "worker 0 running 1" all 120 "bash worker.sh state"); then
      for word in running exited idle new; do
        who=$(sed -n "s/^worker \([0-9]*\) $word *\(.*\)/\1 \2/p" <<<"$seen" | sort -n)
        [[ $who ]] || continue
        text="$(wc -l <<<"$who" | tr -d ' ') workers"
        if [[ $word == exited ]]; then text+=": worker $(paste -sd, <<<"${who// / with }" | sed 's/,/, /g')"; fi
        line "$word" "$text"
      done
      progress=$(sed -n 's/^at //p' <<<"$seen" | tail -n 1)
    else
      line workers "not all of them answer, or setup.sh has not run yet"
    fi
  fi
fi
if [[ -n ${BUCKET:-} ]]; then
  if [[ -z $progress ]]; then
    metrics=$(gcloud_ask '{"step": 0}' storage cat "gs://$BUCKET/$WORKDIR/metrics.jsonl" "--project=$PROJECT" | tail -n 1)
    if [[ $metrics == ABSENT ]]; then progress="nothing recorded yet"; else progress="last record $metrics"; fi
  fi
  checkpoint=$(newest_checkpoint)
fi
line run "${progress:-unknown: give --bucket}"
line checkpoint "${checkpoint:-unknown: give --bucket}"

# Slices of the past are in a file that delete.sh writes; the time between a preemption and its discovery is counted as well.
seconds=0 now=$(date +%s)
if [[ -f $(memory)/slices ]]; then
  while read -r from to chips; do seconds=$((seconds + (to - from) * chips)); done <"$(memory)/slices"
fi
if [[ $node != ABSENT ]] && from=$(date -d "$created" +%s 2>/dev/null); then
  seconds=$((seconds + (now - from) * $(chips_of "$accelerator")))
fi
hours=$(awk "BEGIN {printf \"%.1f\", $seconds / 3600}")
if [[ -n ${PRICE:-} ]]; then
  dollars=$(awk "BEGIN {printf \"%.2f\", $seconds / 3600 * $PRICE}")
  line money "at most \$$dollars: $hours chip hours at \$$PRICE, storage and transfer apart"
else
  line money "$hours chip hours; give --price, dollars for one, to see the money"
fi
