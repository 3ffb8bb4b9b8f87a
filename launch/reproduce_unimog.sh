#!/usr/bin/env bash
# UNIMO-G's ablations in miniature: attention maps, the second stage, words and exchanged pictures.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/reproduce_unimog.sh [OUT]

Trains the base and the arms of configs/miniworld_unimog.py, evaluates them on scenes of held-out
subjects, and compares them:

  OUT/base, OUT/ARM-SEED          runs (default of OUT: runs/unimog)
  docs/unimog.json, .md, .png     with and without attention maps, and without the second stage, on
                                  one, two and three pictures, on two that are exchanged, and on
                                  words alone, 2 seeds

It tests the mechanism: small pictures of emoji, and a model of a million parameters. Stopped, it
continues with the same command; what is finished is left alone.

  STEPS, BASE_STEPS   train steps of an arm (2000: 11 to 13 minutes on two cores) and of the base
                      (6000)
  TINY                1 for sizes that take seconds, for tests
  SUBJECTS            folder of subjects (default: data/subjects-32)
  COMPARED            where numbers and pictures go, without an ending (default: docs/unimog)
TEXT
}

case "${1:-}" in
  -h | --help) usage && exit 0 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-runs/unimog}"
python="${VENV:-.venv}/bin/python"
config=configs/miniworld_unimog.py
tiny="${TINY:+,tiny}"
subjects="${SUBJECTS:-data/subjects-32}"
compared="${COMPARED:-docs/unimog}"
arms=(full no_maps longer)

[[ -x $python ]] || ./launch/environment.sh
[[ -e $subjects/manifest.json ]] || ./launch/subjects.sh "$subjects"

# train WORKDIR ARGUMENTS: nothing where the run has its last step
train() {
  "$python" -m launch.train --workdir "$1" --config "$config:$2$tiny" --set data.folder="$subjects"
}

train "$out/base" "arm=base,steps=${BASE_STEPS:-6000}"
runs=()
for name in "${arms[@]}"; do
  for seed in 0 1; do
    run="$out/$name-$seed"
    if [[ ! -e $run/report/results.json ]]; then
      train "$run" "arm=$name,seed=$seed,start=$out/base,steps=${STEPS:-2000}"
      "$python" -m launch.evaluate --workdir "$run" --tasks interleave
    fi
    runs+=("--run=$name=$run")
  done
done
"$python" -m launch.compare "${runs[@]}" --picture interleave_2 --out "$compared"
