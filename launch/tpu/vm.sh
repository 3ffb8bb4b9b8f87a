#!/usr/bin/env bash
# Trains on Cloud TPU VMs.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster.sh"

usage() {
  cat <<'TEXT'
usage: ./launch/tpu/vm.sh [ACTION] --name NAME --topology SLICE --zone ZONE [OPTION...]

Trains on TPU VMs, taken by `gcloud compute tpus queued-resources`. The actions:

  all       create, wait, setup, start and follow; then log and delete. A run that breaks off is
            started again, on new machines where the old ones were taken away (default). Where it
            was interrupted itself: follow, log, delete
  create    asks for the machines
  wait      waits until they are there
  setup     copies the last commit to every host, and makes the environment there
  start     starts training on every host, in the background; where it runs already it goes on
  follow    shows the log of the first host, and ends with its status
  stop      ends training on every host
  log       copies the logs of all hosts to WORKDIR/logs
  delete    gives the machines back

  --topology SLICE     as in launch.plan: v4, v5e, v5p or v6e with a shape, v5p:4x4x4
  --num_slices N       so many of them, as one run (default: 1)
  --zone ZONE          such as us-east5-a
  --project PROJECT    default: gcloud's
  --spot               machines that can be taken away at any time
  --keep               with all: leaves the machines there at the end
  --create_flag FLAG   flag of `gcloud ... create`, --create_flag=--network=n; repeatable
  --ssh_flag FLAG      flag of `gcloud ... ssh` and `scp`, --ssh_flag=--internal-ip; repeatable

With more than one host, gcloud wants the key in the agent: ssh-add ~/.ssh/google_compute_engine
TEXT
}

actions="all create wait setup start follow stop log delete"
values="topology num_slices zone project"
lists="create_flag ssh_flag"
switches="spot keep"
topology='' num_slices=1 zone='' project='' spot='' keep='' create_flag_list=() ssh_flag_list=()
accelerator_type='' runtime_version=''
parse "$@"
check_name
check zone '[a-z]+-[a-z0-9]+-[a-z][a-z0-9]*' us-east5-a
where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
cd "$root"

queued_resources() { run gcloud compute tpus queued-resources "$@" "${where[@]}"; }
state() { queued_resources describe "$name" "--format=value(state.state)"; }

create() {
  local flags=("--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version")
  if ((num_slices > 1)); then
    flags+=("--node-count=$num_slices" "--node-prefix=$name")
  else
    flags+=("--node-id=$name")
  fi
  [[ -z $spot ]] || flags+=(--spot)
  queued_resources create "$name" "${flags[@]}" "${create_flag_list[@]}"
}

wait_for_machines() {
  local now
  if [[ -n $dry_run ]]; then
    note "every 30 seconds, until it prints ACTIVE"
    state
    return
  fi
  while true; do
    now="$(state)" || return
    say "$name is $now"
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        say "it will not become ACTIVE: delete it, and create it again"
        return 1
        ;;
    esac
    sleep 30
  done
}

# on_all COMMAND, on_first COMMAND: by the login shell of the hosts
on_all() {
  queued_resources ssh "$name" --node=all --worker=all --batch-size=all "--command=$1" \
    "${ssh_flag_list[@]}"
}
on_first() {
  queued_resources ssh "$name" --node=0 --worker=0 "--command=$1" "${ssh_flag_list[@]}"
}
worker() { quote ./unidiff_jax/launch/tpu/worker.sh "$@"; }

setup() {
  local code="runs/vm/$name.tar.gz"
  [[ -n $dry_run || -z "$(git status --porcelain)" ]] ||
    say "changes that are not committed stay here"
  run mkdir -p runs/vm &&
    run git archive --format=tar.gz "--output=$code" HEAD -- \
      LICENSE setup.py pyproject.toml constraints.txt configs data_pipelines launch unidiff_jax &&
    queued_resources scp "$code" "$name:unidiff_jax.tar.gz" --node=all --worker=all \
      --batch-size=all "${ssh_flag_list[@]}" &&
    on_all "mkdir -p unidiff_jax && tar -xzf unidiff_jax.tar.gz -C unidiff_jax && $(worker setup)"
}

start() { on_all "$(worker start "${train[@]}")"; }
follow() { on_first "$(worker follow)"; }
stop() { on_all "$(worker stop)"; }
log() { on_all "$(worker log "${workdir%/}/logs")"; }
delete() { queued_resources delete "$name" --force --quiet; }

all() {
  local status=0 restarts=0 now
  create && wait_for_machines && setup && start || return
  note "should it end with another status than 0 and 2: stop and start again, or, where the" \
    "machines were taken away, delete and all from create on; up to $max_restarts times"
  until follow; do
    status=$?
    now="$(state)" || return
    if [[ $now != ACTIVE ]]; then
      ((restarts++ < max_restarts)) || break
      delete && create && wait_for_machines && setup && start || return
    elif ! on_first "$(worker running)"; then
      ((status != 2 && restarts++ < max_restarts)) || break
      stop && start || return
    fi # and else only the connection broke
    status=0
  done
  log || true
  [[ -n $keep ]] || delete
  return "$status"
}

case $action in
  create | all)
    find_slice
    [[ -n $runtime_version ]] ||
      fail "there are no TPU VMs of --topology $topology; use launch/tpu/gke.sh or xpk.sh"
    [[ -n $accelerator_type ]] ||
      fail "--topology $topology has no accelerator type of its own; use launch/tpu/gke.sh, or a" \
        "more compact shape of as many chips"
    ;;
esac
case $action in
  start | all)
    check_bucket
    make_train .venv/bin/python
    ;;
  log) check_bucket ;;
esac
case $action in
  wait) wait_for_machines ;;
  *) "$action" ;;
esac
