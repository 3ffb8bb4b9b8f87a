#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster.sh"

usage() {
  cat <<'TEXT'
usage: ./launch/gpu/slurm.sh --name NAME --nodes N [OPTION...]

Submits a batch job with one process a GPU, as JAX expects it of Slurm: the process with local
number i drives the i-th GPU of its node, and every process sees all of them. So data.num_shards has
to be a multiple of the number of GPUs.

The job queues again when its time is up, when it is preempted or loses a node, and when training
breaks off; each time it continues the workdir. Wrong flags (status 2) and scancel end it.

  --nodes N            nodes (default: 1)
  --gpus_per_node N    GPUs of each (default: 8)
  --cpus_per_task N    cores of each process (default: Slurm's)
  --time TIME          at most so long at a time, such as 1-00:00:00 (default: the partition's)
  --grace SECONDS      how long before its end training gets SIGTERM (default: 120)
  --image IMAGE        container for pyxis: a .sqsh file or REGISTRY#IMAGE. Default: none, and the
                       environment of ./launch/environment.sh cuda on a disk that all nodes share
  --mounts MOUNTS      folders of the container, /data:/data,/runs:/runs (default: the workdir)
  --sbatch_flag FLAG   flag of sbatch, --sbatch_flag=--partition=gpu; repeatable

  VENV                 the environment (default: .venv)
TEXT
}

actions=""
values="nodes gpus_per_node cpus_per_task time grace image mounts"
lists="sbatch_flag"
switches=""
nodes=1 gpus_per_node=8 cpus_per_task='' time='' grace=120 image='' mounts='' sbatch_flag_list=()
parse "$@"
check_name
check_whole nodes 1
check_whole gpus_per_node 1
check_whole grace 10
[[ -z $cpus_per_task ]] || check_whole cpus_per_task 1
[[ -z $time ]] || check time '[0-9]+(-[0-9]+)?(:[0-9]+){0,2}' 1-00:00:00
cd "$root"

# In a container, a relative folder would be one of the container.
[[ -z $workdir || $workdir == gs://* || $workdir == /* ]] || workdir="$root/$workdir"

srun=(srun --kill-on-bad-exit=1)
[[ -z $cpus_per_task ]] || srun+=("--cpus-per-task=$cpus_per_task")
if [[ -n $image ]]; then
  [[ -n $mounts || $workdir == gs://* ]] || mounts="$workdir:$workdir"
  srun+=("--container-image=$image" --container-workdir=/unidiff_jax --no-container-mount-home)
  [[ -z $mounts ]] || srun+=("--container-mounts=$mounts")
  make_train python
else
  [[ -z $mounts ]] || fail "--mounts belongs to a container; for example --image unidiff_jax.sqsh"
  venv="${VENV:-.venv}"
  [[ $venv == /* ]] || venv="$root/$venv"
  make_train "$venv/bin/python"
fi

directives() {
  cat <<TEXT
#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus_per_node
#SBATCH --gpus-per-node=$gpus_per_node
TEXT
  [[ -z $cpus_per_task ]] || echo "#SBATCH --cpus-per-task=$cpus_per_task"
  [[ -z $time ]] || echo "#SBATCH --time=$time"
  cat <<TEXT
#SBATCH --output=runs/slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@$grace

max_restarts=$max_restarts
patience=$((grace * 3 / 4))
TEXT
}

# What the job does once training was started in the background.
watch_over_it() {
  cat <<'TEXT'
training=$!

# Slurm warns this shell alone, so that the job is still there to be queued again. Training that
# does not end by itself is ended in time for that.
warned=
warn() {
  warned=yes
  kill -TERM "$training"
  (sleep "$patience" && kill -KILL "$training") 2>/dev/null &
}
trap warn USR1
wait "$training"
status=$?
# the warning ends the first wait
[[ -z $warned ]] || wait "$training"

if [[ -n $warned ]] ||
  ((status != 0 && status != 2 && ${SLURM_RESTART_COUNT:-0} < max_restarts)); then
  # a job that was cancelled runs no more
  [[ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" != RUNNING ]] ||
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
TEXT
}

script="$(directives && echo "$(quote "${srun[@]}" "${train[@]}") &" && watch_over_it)"
# Slurm makes no folder for the log.
run mkdir -p runs/slurm
run_with "$script" sbatch "${sbatch_flag_list[@]}"
