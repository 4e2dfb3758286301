#!/usr/bin/env bash
# Trains with several processes on this machine, each with simulated CPU devices: what a cluster does, to try it out.
#
#   launch/local.sh N CONFIG [--section.field VALUE ...]
#
# DEVICES (4) devices a process. Ends when the first process ends badly, with its exit code.
set -euo pipefail
if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh N CONFIG [--section.field VALUE ...]" >&2
  exit 2
fi
num_processes=$1
shift

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-4}"
export JAX_NUM_PROCESSES=$num_processes
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
# The processes talk over loopback; a proxy would only stand in the way.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY no_proxy NO_PROXY

processes=()
for ((index = 0; index < num_processes; index++)); do
  JAX_PROCESS_ID=$index ${JAXLLM:-jaxllm} train "$@" &
  processes+=($!)
done
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT

code=0
while ((${#processes[@]})); do
  left=()
  for process in "${processes[@]}"; do
    if kill -0 "$process" 2>/dev/null; then
      left+=("$process")
      continue
    fi
    status=0
    wait "$process" || status=$?
    ((code)) || code=$status
    # The others would wait for it in their next collective.
    ((status == 0 || status == 75)) || kill -KILL "${processes[@]}" 2>/dev/null || true
  done
  processes=("${left[@]}")
  sleep 0.2
done
exit "$code"
