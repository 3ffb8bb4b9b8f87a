#!/usr/bin/env bash
# The container image: builds it, brings it to a cluster, trains in it.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

usage() {
  cat <<'TEXT'
usage: ./launch/container.sh [ACTION] --image IMAGE [--extra cuda|tpu] [OPTION...]

  build     builds the image of launch/container/Dockerfile (default)
  push      brings it to its registry, for GKE
  import    makes FILE of it with enroot, for Slurm with pyxis
  run       trains in it on this machine, in one process

  --image IMAGE        name of the image (default: unidiff_jax:EXTRA)
  --extra EXTRA        what it is for, cuda or tpu (default: cuda)
  --engine ENGINE      docker or podman (default: docker)
  --file FILE          of import (default: unidiff_jax-EXTRA.sqsh)
  --mount FOLDER       of run: a further folder of this machine at the same place, such as data;
                       repeatable
TEXT
}

actions="build push import run"
values="image extra engine file"
lists="mount"
switches=""
image='' extra=cuda engine=docker file='' mount_list=()
distributed=''
parse "$@"
check extra 'cuda|tpu' cuda
check engine 'docker|podman' docker
image="${image:-unidiff_jax:$extra}"
check image '[[:alnum:]][[:alnum:]._/:@-]*' "unidiff_jax:$extra"
cd "$root"

build() {
  run "$engine" build "--build-arg=EXTRA=$extra" --file=launch/container/Dockerfile \
    "--tag=$image" .
}

push() { run "$engine" push "$image"; }

import() {
  local scheme=dockerd
  [[ $engine == docker ]] || scheme=podman
  run enroot import "--output=${file:-unidiff_jax-$extra.sqsh}" "$scheme://$image"
}

train_here() {
  local folder flags=(--rm --network=host --ipc=host)
  case $extra-$engine in
    tpu-*) flags+=(--privileged) ;;
    cuda-docker) flags+=(--gpus=all) ;;
    cuda-podman) flags+=(--device=nvidia.com/gpu=all) ;;
  esac
  if [[ -n $workdir && $workdir != gs://* ]]; then
    [[ $workdir == /* ]] || workdir="$root/$workdir"
    run mkdir -p "$workdir" # the engine would make it for root
    mount_list+=("$workdir")
  fi
  make_train python
  for folder in "${mount_list[@]}"; do
    [[ $folder == /* ]] || folder="$root/$folder"
    flags+=("--volume=$folder:$folder")
  done
  run "$engine" run "${flags[@]}" "$image" "${train[@]}"
}

case $action in
  run) train_here ;;
  *) "$action" ;;
esac
