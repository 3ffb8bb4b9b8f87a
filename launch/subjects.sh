#!/usr/bin/env bash
# Emoji to subjects: named pictures with exact masks.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch/subjects.sh [OUT [FLAG...]]

Fetches two npm packages, both under the MIT licence, checks them, unpacks them and makes the
subjects data set of them (launch.subjects), in about a minute:

  @lobehub/fluent-emoji-3d 1.1.0   3,391 pictures of 256 x 256 pixels, 16 MB
  unicode-emoji-json 0.9.0         their names and groups

Default of OUT: data/subjects-32. The FLAGs are those of launch.subjects:

  ./launch/subjects.sh data/subjects-64 --size 64 --sheet sheet.png

  PACKAGES   where the packages are kept (default: data/emoji); without npm, put
             lobehub-fluent-emoji-3d-1.1.0.tgz and unicode-emoji-json-0.9.0.tgz there
TEXT
}

fail() {
  echo "subjects.sh: $*" >&2
  exit 1
}

case "${1:-}" in
  -h | --help) usage && exit 0 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-data/subjects-32}"
packages="${PACKAGES:-data/emoji}"
./launch/environment.sh
python="${VENV:-.venv}/bin/python"

# fetch FOLDER PACKAGE FILE SHA256: a package of the registry, unpacked into PACKAGES/FOLDER
fetch() {
  local folder="$packages/$1" package=$2 file="$packages/$3" sum=$4
  [[ ! -d $folder ]] || return 0
  mkdir -p "$packages"
  if [[ ! -e $file ]]; then
    command -v npm >/dev/null || fail "npm is not here; put $3 into $packages"
    npm pack --silent --pack-destination "$packages" "$package" >/dev/null
  fi
  "$python" - "$file" "$sum" <<'CODE' || fail "$file is not the package that was tested; remove it"
import hashlib
import pathlib
import sys

sys.exit(hashlib.sha256(pathlib.Path(sys.argv[1]).read_bytes()).hexdigest() != sys.argv[2])
CODE
  mkdir -p "$folder.partial"
  tar -xzf "$file" -C "$folder.partial" --strip-components 1
  mv "$folder.partial" "$folder"
}

fetch pictures @lobehub/fluent-emoji-3d@1.1.0 lobehub-fluent-emoji-3d-1.1.0.tgz \
  c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58
fetch names unicode-emoji-json@0.9.0 unicode-emoji-json-0.9.0.tgz \
  ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401

"$python" -m launch.subjects --emoji "$packages/pictures" --names "$packages/names" --out "$out" \
  "${@:2}"
