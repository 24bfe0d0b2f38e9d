#!/usr/bin/env bash
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "Starts bert-jax pretrain on all workers, detached from this terminal; continues a run that has ended." \
  "PROJECT! ZONE! NAME! CONFIG! WORKDIR PROFILER_PORT REST" "$@"
need gcloud timeout
[[ -f $root/$CONFIG ]] || fail "no configuration $CONFIG in $root: the workers have what setup.sh copied from there"

# A second start would be refused by the workers, and what a refusal stops below would be the run itself.
seen=$(ask_workers "" all 300 "bash worker.sh state 2>/dev/null || echo worker 0 new") || {
  complain "a worker does not answer: run.sh may be called again"
  exit 75
}
if grep -q '^worker [0-9]* running' <<<"$seen"; then
  grep '^worker [0-9]* running' <<<"$seen" | sort >&2
  complain "a run is under way already: stop.sh ends it, status.sh shows how far it is; nothing was changed"
  exit 75
fi

arguments=(--config "$CONFIG" --distributed)
((PROFILER_PORT == 0)) || arguments+=(--profiler-port "$PROFILER_PORT")
status=0
on_workers all 300 "bash worker.sh start $(quoted "$WORKDIR" "${arguments[@]}" "${rest[@]}")" || status=$?
if ((status)); then
  say "not every worker started: stopping those that did"
  on_workers all 300 "bash worker.sh stop" || :
  if ((status == 78)); then fail "a worker refused: its line is above"; fi
  complain "a worker did not start (status $status): its line is above; run.sh may be called again"
  exit 75
fi
say "running. status.sh shows how far it is, babysit.sh keeps it running; logs are in bert_jax_job/logs/run.log on each worker"
