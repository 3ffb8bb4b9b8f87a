#!/usr/bin/env bash
# UniReal's ablations (its Table 4) in miniature.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/reproduce_unireal.sh [OUT]

Trains one base on single pictures, and from it each arm of configs/miniworld_unireal.py for the same
number of steps with two seeds; evaluates all of them on held-out edits, and compares them:

  OUT/base, OUT/ARM-SEED      runs (default of OUT: runs/unireal)
  docs/unireal.json, .md, .png   numbers, table and pictures

Stopped, it continues with the same command; what is finished is left alone.

  STEPS, BASE_STEPS   train steps of an arm (900: below 8 minutes on two cores) and of the base
  TINY                1 for sizes that take seconds, for tests
  COMPARED            where numbers and pictures go, without an ending (default: docs/unireal)
TEXT
}

case "${1:-}" in
  -h | --help) usage && exit 0 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-runs/unireal}"
python="${VENV:-.venv}/bin/python"
config=configs/miniworld_unireal.py
tiny="${TINY:+,tiny}"
seeds="0 1"
arms="all video expert no_tags no_roles"
entries=edit_add,edit_remove,edit_move,edit_recolor,edit_background,next_frame

[[ -x $python ]] || ./launch/environment.sh

"$python" -m launch.quickstart --config "$config:arm=base,steps=${BASE_STEPS:-8000}$tiny" \
  --workdir "$out/base"
runs=()
for arm in $arms; do
  for seed in $seeds; do
    run="$out/$arm-$seed"
    if [[ ! -e $run/report/results.json ]]; then
      "$python" -m launch.train --workdir "$run" \
        --config "$config:arm=$arm,seed=$seed,start=$out/base,steps=${STEPS:-900}$tiny"
      "$python" -m launch.evaluate --workdir "$run" --tasks "$entries"
    fi
    runs+=(--run "$arm=$run")
  done
done
"$python" -m launch.compare "${runs[@]}" --picture edit_remove --out "${COMPARED:-docs/unireal}"
