#!/usr/bin/env bash
# Writes constraints.txt and constraints-curate.txt from setup.py.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/lock.sh [--upgrade | --upgrade-package NAME]

Resolves setup.py into two files of locked versions, each valid for Python 3.11 and later:

  constraints.txt         the base and the extras dev, eval, torch, tpu and cuda
  constraints-curate.txt  the base and the extras dev, eval, torch and curate

Without an argument the present pins are kept wherever they still satisfy setup.py. Arguments are
handed to `uv pip compile`. uv is in the extra dev: ./launch/environment.sh dev
TEXT
}

case "${1:-}" in
  -h | --help) usage && exit 0 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv="${VENV:-.venv}/bin/uv"
[[ -x $uv ]] || uv="$(command -v uv)" || {
  echo "lock.sh: no uv; install it with ./launch/environment.sh dev" >&2
  exit 1
}

# lock OUTPUT EXTRA... [-- UV_ARGUMENT...]
lock() {
  local output=$1 extras=()
  shift
  while [[ $# -gt 0 && $1 != -- ]]; do
    extras+=(--extra "$1")
    shift
  done
  [[ $# -gt 0 ]] && shift
  echo "lock.sh: resolving $output"
  # fork-strategy fewest: the newest version that every Python of the range can have, rather than
  # one version a Python. So 3.11 and 3.12 test the same jax.
  "$uv" pip compile setup.py "${extras[@]}" \
    --universal --python-version 3.11 --fork-strategy fewest \
    --strip-extras --annotation-style line \
    --no-emit-index-url --no-emit-find-links \
    --custom-compile-command "./launch/lock.sh" \
    --quiet --output-file "$output" "$@"
}

lock constraints.txt dev eval torch tpu cuda -- "$@"
lock constraints-curate.txt dev eval torch curate -- "$@"
