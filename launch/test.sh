#!/usr/bin/env bash
# Makes the environment, checks the format and runs the tests.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/test.sh [PYTEST_ARGUMENT...]

Makes the environment (launch/environment.sh dev curate identity), then runs ruff check, ruff format
--check and pytest with two workers on everything that is not marked slow. Arguments are handed to pytest:

  ./launch/test.sh                    the default suite
  ./launch/test.sh -k flow            the tests whose names hold "flow"
  ./launch/test.sh -m slow            the slow suite

  JAX_PLATFORMS   the devices to test on (default: cpu)
  PYTHON, VENV    as for launch/environment.sh
TEXT
}

case "${1:-}" in
  -h | --help) usage && exit 0 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/environment.sh dev curate identity
bin="${VENV:-.venv}/bin"

# Two workers with a thread pool of all cores each would fight for them. XLA's CPU client reads
# NPROC; NumPy's BLAS reads the OMP variable.
cores="$(getconf _NPROCESSORS_ONLN)"
export NPROC="${NPROC:-$((cores > 2 ? cores / 2 : 1))}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$NPROC}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

"$bin/ruff" check .
"$bin/ruff" format --check .
exec "$bin/python" -m pytest -n 2 -m "not slow" "$@"
