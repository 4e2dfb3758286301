#!/usr/bin/env bash
# Trains on all hosts of a TPU pod slice of Compute Engine, from any machine with gcloud:
#
#   TPU=my-pod ZONE=us-east5-a launch/tpu_pod.sh CONFIG [--section.field VALUE ...]
#
# DIRECTORY (jaxllm) is the checkout on every host; the run's directory must lie where all hosts reach it.
# Hosts of queued resources with several slices are better started by launch/gke_jobset.yaml.
set -euo pipefail
: "${TPU:?name the pod: TPU=my-pod ZONE=us-east5-a launch/tpu_pod.sh CONFIG}" "${ZONE:?name its zone}"
if [[ $# -eq 0 ]]; then
  echo "usage: TPU=NAME ZONE=ZONE launch/tpu_pod.sh CONFIG [--section.field VALUE ...]" >&2
  exit 2
fi

# Each host asks the metadata server who it is; the first host in the list is the coordinator.
on_host='
set -euo pipefail
metadata() { curl -sf -H Metadata-Flavor:Google "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
hosts=$(metadata worker-network-endpoints | tr "," "\n" | sed "s/.*://")
export JAX_NUM_PROCESSES=$(wc -l <<<"$hosts")
export JAX_PROCESS_ID=$(metadata agent-worker-number)
export JAX_COORDINATOR_ADDRESS=$(head -n 1 <<<"$hosts"):8476
cd "${DIRECTORY:-jaxllm}"
exec ${JAXLLM:-uv run --extra tpu jaxllm} train "$@"
'
printf -v command 'DIRECTORY=%q bash -c %q jaxllm' "${DIRECTORY:-jaxllm}" "$on_host"
printf -v arguments ' %q' "$@"
gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all --command "$command$arguments"
