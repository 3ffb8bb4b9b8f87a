#!/usr/bin/env bash
# UniVG's ablations in miniature: auxiliary tasks, late identity, channels against frames.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/reproduce_univg.sh [OUT]

Trains the bases and the arms of configs/miniworld_univg.py, evaluates them on held-out scenes and
subjects, and compares them:

  OUT/base, OUT/ARM-SEED         runs (default of OUT: runs/univg)
  docs/univg-auxiliary.json, .md, .png    with and without depth and segmentation, 3 seeds
  docs/univg-identity.json, .md, .png     identity from the start, or in a last stage, 2 seeds
  docs/univg-frames.json, .md, .png       given pictures on channels, or as frames, 3 seeds
  docs/univg-speed-ARM.json               step and edits a second of both, in one run

Stopped, it continues with the same command; what is finished is left alone.

  STEPS, LAST_STEPS, BASE_STEPS   train steps of an arm (1000: below 8 minutes on two cores), of the
                      last stage with identity (300), and of a base (8000)
  TINY                1 for sizes that take seconds, for tests
  COMPARED            where numbers and pictures go, without an ending (default: docs/univg)
TEXT
}

case "${1:-}" in
  -h | --help) usage && exit 0 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-runs/univg}"
python="${VENV:-.venv}/bin/python"
config=configs/miniworld_univg.py
tiny="${TINY:+,tiny}"
compared="${COMPARED:-docs/univg}"
steps="${STEPS:-1000}"
last="${LAST_STEPS:-300}"
edits=edit_add,edit_remove,edit_move,edit_recolor,edit_background

[[ -x $python ]] || ./launch/environment.sh
[[ -e data/subjects-32/manifest.json ]] || ./launch/subjects.sh data/subjects-32

# arm NAME SEED START STEPS ENTRIES
arm() {
  local run="$out/$1-$2"
  if [[ ! -e $run/report/results.json ]]; then
    "$python" -m launch.train --workdir "$run" \
      --config "$config:arm=$1,seed=$2,start=$out/$3,steps=$4$tiny"
    "$python" -m launch.evaluate --workdir "$run" --tasks "$5"
  fi
}

# arms as `launch.compare` takes them: arms SEEDS NAME...
arms() {
  local seeds="$1" name seed
  shift
  for name in "$@"; do
    for seed in $seeds; do
      echo "--run=$name=$out/$name-$seed"
    done
  done
}

for base in base base_frames; do
  "$python" -m launch.quickstart --config "$config:arm=$base,steps=${BASE_STEPS:-8000}$tiny" \
    --workdir "$out/$base"
done
for seed in 0 1 2; do
  arm plain "$seed" base "$steps" "$edits,text_to_image"
  arm auxiliary "$seed" base "$steps" "$edits,text_to_image"
  arm frames "$seed" base_frames "$steps" "$edits"
done
for seed in 0 1; do
  arm identity_last "$seed" "plain-$seed" "$last" "personalize,$edits"
  arm identity_first "$seed" base "$((steps + last))" "personalize,$edits"
done
for name in plain frames; do
  "$python" -m launch.bench --config "$config:arm=$name$tiny" --parts step,sample \
    --set data.tasks.inpaint.weight=0 --set data.tasks.layout_to_image.weight=0 \
    --set data.tasks.text_to_image.weight=0 --json "$compared-speed-$name.json"
done
mapfile -t runs < <(arms "0 1 2" plain auxiliary)
"$python" -m launch.compare "${runs[@]}" --picture edit_remove --out "$compared-auxiliary"
mapfile -t runs < <(arms "0 1 2" plain frames)
"$python" -m launch.compare "${runs[@]}" --picture edit_remove --out "$compared-frames"
mapfile -t runs < <(arms "0 1" identity_last identity_first)
"$python" -m launch.compare "${runs[@]}" --picture personalize --out "$compared-identity"
