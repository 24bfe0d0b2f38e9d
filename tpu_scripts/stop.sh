#!/usr/bin/env bash
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "Ends the run on all workers: it saves first, and run.sh continues it. The slice stays and costs money." \
  "PROJECT! ZONE! NAME!" "$@"
need gcloud timeout
on_workers all 300 "bash worker.sh stop" || fail "not every worker answered: run it again"
