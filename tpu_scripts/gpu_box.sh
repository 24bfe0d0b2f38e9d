#!/usr/bin/env bash
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "Trains on the GPUs of this machine: checks the driver, makes the environment, runs, again when cut off." \
  "CONFIG! DATA! WORKDIR! VENV MAX_STARTS REST" "$@"
need nvidia-smi python3
venv=${VENV:-$root/.venv-cuda}
[[ -f $CONFIG ]] || fail "no configuration $CONFIG"
[[ -f $DATA/manifest.json ]] || fail "$DATA is no token store: make one with bert-jax prepare"

# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes: CUDA 12 needs driver 525 or newer.
driver=$(ask 570.00 nvidia-smi --query-gpu=driver_version --format=csv,noheader) ||
  fail "nvidia-smi fails: $(head -n 1 <<<"${driver:-no driver}")"
driver=$(head -n 1 <<<"$driver")
((${driver%%.*} >= 525)) || fail "the NVIDIA driver is $driver: 525 or newer is needed for CUDA 12"

if [[ ! -x $venv/bin/bert-jax ]]; then
  act python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || fail "python3 is not 3.11 to 3.13"
  act python3 -m venv "$venv"
  act "$venv/bin/pip" install --quiet --editable "${root}[cuda]" || fail "installing failed: pip's line is above"
fi
act "$venv/bin/python" -c 'import jax; assert jax.default_backend() == "gpu"' ||
  fail "JAX in $venv does not see the GPU: see above"

run=("$venv/bin/bert-jax" pretrain --config "$CONFIG" --data "$DATA" --workdir "$WORKDIR" "${rest[@]}")
if dry; then act "${run[@]}" && exit; fi
while :; do
  count_start "$WORKDIR/restarts/$HOSTNAME" "$(local_checkpoint "$WORKDIR")" # another machine may train with this one
  status=0
  forward "${run[@]}" || status=$?
  case $status in 0 | 1 | 2) exit "$status" ;; esac # done, or refused with a line of its own
  [[ -z $asked ]] || exit "$status"
  say "$(date +%T) bert-jax ended with status $status: going on from the last checkpoint"
  sleep 1
done
