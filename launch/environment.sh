#!/usr/bin/env bash
# Makes the virtual environment and installs the locked versions into it.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/environment.sh [EXTRA...]

Makes .venv in the repository, unless it is there, and installs unidiff_jax (editable) with the
versions of constraints.txt and the extras named: dev, torch, eval, identity, tpu, cuda, gcs, curate.
Extras add up over calls. Where nothing has changed since the last call it does nothing.

  PYTHON   the Python to make it with, 3.11 or later (default: the first found on the PATH)
  VENV     where to make it (default: .venv)
  PIP_*    pip's own settings, such as PIP_INDEX_URL, PIP_FIND_LINKS or PIP_VERBOSE
TEXT
}

say() { echo "environment.sh: $*"; }
fail() {
  echo "environment.sh: $*" >&2
  exit 1
}

case "${1:-}" in
  -h | --help) usage && exit 0 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"
stamp="$venv/.unidiff_jax"

known="$(sed -n 's/^    "\([a-z]*\)": \[.*/\1/p' setup.py | sort | xargs)"
for extra in "$@"; do
  [[ " $known " == *" $extra "* ]] || fail "no extra '$extra'; there are: $known"
done

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  if [[ -n "${PYTHON:-}" ]]; then
    is_recent "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or later"
    echo "$PYTHON" && return
  fi
  local candidate
  for candidate in python3 python3.12 python3.11 python3.13 python; do
    is_recent "$candidate" && echo "$candidate" && return
  done
  fail "no Python 3.11 or later found; install one, or name it: PYTHON=/path/to/python3.12 $0"
}

if [[ ! -e "$venv" ]]; then
  python="$(find_python)"
  # Debian and Ubuntu ship venv without ensurepip, and `python -m venv` then leaves half a folder.
  "$python" -c 'import ensurepip, venv' 2>/dev/null || {
    version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    fail "$python cannot make environments; on Debian or Ubuntu: apt install python$version-venv"
  }
  say "making $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi
python="$venv/bin/python"
"$python" -m pip --version >/dev/null 2>&1 || fail "$venv is not a working environment; remove it"
is_recent "$python" || fail "$venv has $("$python" --version); remove it, 3.11 or later is needed"

# The extras of earlier calls stay: a test run after `environment.sh torch` must not drop torch.
installed="$(sed -n 2p "$stamp" 2>/dev/null || true)"
extras="$(echo "$installed" "$@" | tr ' ' '\n' | sort -u | sed '/^none$/d' | xargs)"
[[ -n $extras ]] || extras=none

# The folder is part of it because an editable install points to it.
state="$( (pwd && cat setup.py pyproject.toml constraints.txt) |
  "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"

if [[ "$(cat "$stamp" 2>/dev/null || true)" == "$state ready"$'\n'"$extras" ]]; then
  say "$venv is up to date ($("$python" --version), extras: $extras)"
  exit 0
fi

target="."
[[ $extras == none ]] || target=".[${extras// /,}]"
say "$python -m pip install -c constraints.txt -e $target (a minute or two the first time)"
printf '%s\n%s\n' "$state incomplete" "$extras" >"$stamp"
PIP_DISABLE_PIP_VERSION_CHECK="${PIP_DISABLE_PIP_VERSION_CHECK:-1}" \
  "$python" -m pip install --quiet -c constraints.txt -e "$target"
printf '%s\n%s\n' "$state ready" "$extras" >"$stamp"
say "$venv is ready ($("$python" --version), extras: $extras)"
