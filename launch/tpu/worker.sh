#!/usr/bin/env bash
# What launch/tpu/vm.sh does on each host.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/tpu/worker.sh setup | start COMMAND... | running | follow | stop | log FOLDER

Keeps one command running on this host, whatever becomes of the connection that started it:

  setup      makes the environment, with a newer Python where the system's is too old
  start      starts the command in the background, unless one runs already
  running    ends with 0 if one runs
  follow     shows its log, and ends with its status
  stop       ends it
  log        copies its log into a bucket

  STATE      the folder of its log, process and status (default: runs/worker)
TEXT
}

case "${1:-}" in
  -h | --help | '') usage && exit 0 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
state="${STATE:-runs/worker}"
mkdir -p "$state"

setup() {
  # The images of TPU VMs have Python 3.10.
  if [[ ! -e .venv ]] && ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python3 -m pip install --quiet --user -c constraints.txt uv
    python3 -m uv venv --quiet --seed --python 3.12 .venv
  fi
  ./launch/environment.sh tpu
}

running() { [[ -e $state/pid ]] && kill -0 "$(cat "$state/pid")" 2>/dev/null; }

start() {
  if running; then
    echo "worker.sh: runs already on $(hostname)" >&2
    return
  fi
  rm -f "$state/status"
  # a session of its own, so that stop reaches all of its processes and a hang-up none
  # shellcheck disable=SC2016 # these belong to the inner shell
  PYTHONUNBUFFERED=1 setsid bash -c '"$@"; echo $? >"$0"' "$state/status" "$@" \
    >>"$state/log" 2>&1 </dev/null &
  echo $! >"$state/pid"
}

follow() {
  if running; then
    tail -n 50 --pid="$(cat "$state/pid")" -f "$state/log"
  else
    tail -n 50 "$state/log"
  fi
  return "$(cat "$state/status" 2>/dev/null || echo 1)"
}

stop() {
  local tenth
  running || return 0
  kill -TERM -- "-$(cat "$state/pid")"
  for tenth in {1..600}; do
    running || return 0
    sleep 0.1
  done
  echo "worker.sh: not ended after $((tenth / 10)) seconds; killed" >&2
  kill -KILL -- "-$(cat "$state/pid")"
}

log() { gcloud storage cp "$state/log" "${1%/}/$(hostname).log"; }

case $1 in
  setup | start | running | follow | stop | log) "$@" ;;
  *) echo "worker.sh: no action '$1'; --help lists them" >&2 && exit 2 ;;
esac
