#!/usr/bin/env bash
# Trains on the TPUs of a GKE cluster.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster.sh"

usage() {
  cat <<'TEXT'
usage: ./launch/tpu/gke.sh [ACTION] --name NAME --topology SLICE --image IMAGE [OPTION...]

Trains as a JobSet (launch/tpu/jobset.yaml) on a Standard cluster that has JobSet, and a node pool
for each slice. The actions:

  submit    creates the JobSet (default)
  status    shows it and its pods
  log       shows the log of the first host as it grows
  delete    deletes it

  --topology SLICE     as in launch.plan: v4, v5e, v5p, v6e or tpu7x with a shape, v5p:4x4x4
  --num_slices N       so many of them, as one run (default: 1)
  --image IMAGE        of launch/container.sh, with EXTRA tpu, in a registry
  --spot               on Spot nodes
  --service_account S  the pods' Kubernetes service account, which may write to the bucket
                       (default: default)
  --namespace NAME, --context NAME    as for kubectl (default: kubectl's)
TEXT
}

actions="submit status log delete"
values="topology num_slices image service_account namespace context"
switches="spot"
topology='' num_slices=1 image='' service_account=default namespace='' context='' spot=''
shape='' hosts='' host_chips='' gke_accelerator=''
parse "$@"
check_name
cd "$root"
kubectl=(kubectl)
[[ -z $context ]] || kubectl+=("--context=$context")
[[ -z $namespace ]] || kubectl+=("--namespace=$namespace")

submit() {
  find_slice
  # https://docs.cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice
  ((num_slices == 1 || hosts > 1)) ||
    fail "--num_slices $num_slices needs slices of several hosts, and $topology has one"
  check_bucket
  check image '[[:alnum:]][[:alnum:]._/:@-]*' us-docker.pkg.dev/project/repository/unidiff_jax:tpu
  check service_account '[a-z0-9]([-.a-z0-9]*[a-z0-9])?' trainer
  make_train python
  local word command=() selector='' toleration='' jobset
  for word in "${train[@]}"; do
    command+=("$(kubernetes_literal "$word")")
  done
  if [[ -n $spot ]]; then
    selector='cloud.google.com/gke-spot: "true"'
    toleration='- {key: cloud.google.com/gke-spot, operator: Exists}'
  fi
  jobset="$(render launch/tpu/jobset.yaml "name=$name" "max_restarts=$max_restarts" \
    "num_slices=$num_slices" "hosts=$hosts" "host_chips=$host_chips" "shape=$shape" \
    "gke_accelerator=$gke_accelerator" "service_account=$service_account" "image=$image" \
    "command=$(json "${command[@]}")" "spot_selector=$selector" "spot_toleration=$toleration")"
  run_with "$jobset" "${kubectl[@]}" create --filename=-
}

pods="jobset.sigs.k8s.io/jobset-name=$name"
status() {
  run "${kubectl[@]}" get jobset "$name"
  run "${kubectl[@]}" get pods --output=wide "--selector=$pods"
}
log() {
  run "${kubectl[@]}" logs --follow --tail=-1 \
    "--selector=$pods,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}
delete() { run "${kubectl[@]}" delete jobset "$name"; }

"$action"
