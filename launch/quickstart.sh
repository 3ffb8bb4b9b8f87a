#!/usr/bin/env bash
# From a fresh clone to pictures: makes the environment and runs the quickstart.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/quickstart.sh [--fresh] [FLAG...]

Makes the environment (launch/environment.sh), then runs

  .venv/bin/python -m launch.quickstart --workdir runs/quickstart

which makes a small data set, trains on it and writes samples and their metrics into the workdir. A
run that was stopped goes on where it was; --fresh starts anew. Other flags are handed on. For an
accelerator, install its extra before: ./launch/environment.sh cuda (or tpu).
TEXT
}

case "${1:-}" in
  -h | --help) usage && exit 0 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/environment.sh
exec "${VENV:-.venv}/bin/python" -m launch.quickstart --workdir runs/quickstart "$@"
