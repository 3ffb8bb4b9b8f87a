#!/usr/bin/env bash
# Writes constraints.txt from setup.py.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/lock.sh [--upgrade | --upgrade-package NAME]

Resolves setup.py with all its extras into constraints.txt: locked versions, valid for Python 3.11
and later.

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

# fork-strategy fewest: the newest version that every Python of the range can have, rather than one
# version a Python. So 3.11 and 3.12 test the same jax.
"$uv" pip compile setup.py --all-extras \
  --universal --python-version 3.11 --fork-strategy fewest \
  --strip-extras --annotation-style line \
  --no-emit-index-url --no-emit-find-links \
  --custom-compile-command "./launch/lock.sh" \
  --quiet --output-file constraints.txt "$@"
