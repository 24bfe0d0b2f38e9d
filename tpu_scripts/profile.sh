#!/usr/bin/env bash
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "Traces a running worker for some seconds and brings the trace here. run.sh must have had --profiler-port." \
  "PROJECT! ZONE! NAME! WORKER SECONDS_TRACED PROFILER_PORT TO!" "$@"
need gcloud timeout
((PROFILER_PORT)) || usage_error "PROFILER_PORT is not set: give --profiler-port, the one that run.sh was given"

stamp=$(date -u +%Y%m%dT%H%M%S)
on_workers "$WORKER" $((SECONDS_TRACED + 600)) "bash worker.sh profile $PROFILER_PORT $((SECONDS_TRACED * 1000)) $stamp" ||
  fail "no trace: the reason is above"
act mkdir -p "$TO"
act timeout 900 gcloud compute tpus tpu-vm scp "$NAME:bert_jax_job/profile/$stamp" "$TO/" "${place[@]}" \
  "--worker=$WORKER" --recurse --quiet ||
  fail "copying the trace failed; it is on worker $WORKER in bert_jax_job/profile/$stamp"
say "open it with: pip install xprof && xprof --logdir $(quoted "$TO/$stamp") --port 8791, then http://localhost:8791"
