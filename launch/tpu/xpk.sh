#!/usr/bin/env bash
# Trains on the TPUs of a GKE cluster that XPK made.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster.sh"

usage() {
  cat <<'TEXT'
usage: ./launch/tpu/xpk.sh [ACTION] --name NAME --topology SLICE --cluster CLUSTER --image IMAGE
                           [OPTION...]

Trains as a workload of XPK 1.x (https://github.com/AI-Hypercomputer/xpk). The actions:

  submit    xpk workload create (default)
  delete    xpk workload delete

  --topology SLICE     as in launch.plan: v4, v5e, v5p, v6e or tpu7x with a shape, v5p:4x4x4
  --num_slices N       so many of them, as one run (default: 1)
  --cluster CLUSTER    of `xpk cluster create`
  --image IMAGE        of launch/container.sh, with EXTRA tpu, in a registry
  --zone ZONE, --project PROJECT    default: gcloud's
  --spot               where the cluster provisions nodes by itself, Spot ones
TEXT
}

actions="submit delete"
values="topology num_slices cluster image zone project"
switches="spot"
topology='' num_slices=1 cluster='' image='' zone='' project='' spot=''
xpk_type=''
parse "$@"
check_name
check cluster '[a-z]([-a-z0-9]*[a-z0-9])?' my-cluster
where=("--cluster=$cluster")
[[ -z $project ]] || where+=("--project=$project")
[[ -z $zone ]] || where+=("--zone=$zone")

submit() {
  find_slice
  [[ -n $xpk_type ]] || fail "--topology $topology is unknown to XPK; use launch/tpu/gke.sh"
  check_bucket
  check image '[[:alnum:]][[:alnum:]._/:@-]*' us-docker.pkg.dev/project/repository/unidiff_jax:tpu
  make_train python
  local flags=("--tpu-type=$xpk_type" "--num-slices=$num_slices" "--docker-image=$image")
  [[ -z $spot ]] || flags+=(--spot)
  # XPK itself starts again after the statuses 42 and 127 to 255. Training that breaks off by an
  # exception ends with 1, and with wrong flags with 2.
  run xpk workload create "--workload=$name" "${where[@]}" "${flags[@]}" \
    "--max-restarts=$max_restarts" --restart-on-exit-codes=1 \
    "--command=$(kubernetes_literal "$(quote "${train[@]}")")"
}

delete() { run xpk workload delete "--workload=$name" "${where[@]}"; }

"$action"
