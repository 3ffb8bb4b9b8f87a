# shellcheck shell=bash disable=SC2034,SC2154
# What the scripts that train on real machines share: options, --dry-run, the train command. It is
# sourced by a script that defines usage() and
#
#   actions    the actions that it knows, the default one first; empty where there is only one
#   values, lists, switches    its options beside the shared ones, by the variables that they set:
#              --num_slices 2 sets num_slices, each --set a=1 adds to the array set_list, and --spot
#              sets spot=yes; a hyphen in an option counts as an underscore
#
# and calls parse "$@". Every command goes through run, which prints it under --dry-run.

program="${0##*/}"

say() { echo "$program: $*" >&2; }
# a wrong option: the status that our Python commands have for it
fail() {
  say "$*"
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "needs bash 4.4 or later, and this is $BASH_VERSION; on a Mac: brew install bash"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
dry_run=
config='' workdir='' name='' cache='' max_restarts=20 set_list=() rest=()
distributed=auto

shared_usage() {
  cat <<'TEXT'

The run, in all scripts that train on real machines:

  --config FILE        config file with its argument, configs/unireal.py:stage=256
  --workdir FOLDER     folder of the run, gs://bucket/runs/first; started again, it continues
  --name NAME          name of the job: at most 40 of a-z, 0-9 and -, beginning with a letter
  --set KEY=VALUE      override of the config; repeatable
  --max_restarts N     how often a run that broke off is started again (default: 20)
  --cache FOLDER       compiled programs (default: WORKDIR/compilation_cache)
  --dry-run            prints every command, to be pasted, and runs nothing
  -- FLAG...           further flags of launch.train
TEXT
}

# quote WORD...: the words as a shell reads them, each quoted only where it has to be
quote() {
  local word separator=''
  for word in "$@"; do
    [[ $word =~ ^[[:alnum:]_@%+=:,./-]+$ ]] || word=${word@Q}
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

# run COMMAND...: runs it, or prints it under --dry-run
run() {
  if [[ -n $dry_run ]]; then
    quote "$@" && echo
    return
  fi
  command -v "$1" >/dev/null ||
    fail "$1 is not on the PATH; install it, or see the commands with --dry-run"
  echo "+ $(quote "$@")" >&2
  "$@"
}

# run_with TEXT COMMAND...: the same with a standard input
run_with() {
  local text=$1
  shift
  if [[ -n $dry_run ]]; then
    printf "%s <<'END'\n%s\nEND\n" "$(quote "$@")" "$text"
  else
    run "$@" <<<"$text"
  fi
}

# note WORDS...: a comment between the commands of a dry run
note() { [[ -z $dry_run ]] || echo "# $*"; }

# contains WORDS WORD
contains() { [[ $2 != *' '* && " $1 " == *" $2 "* ]]; }

# parse ARGUMENT...: sets the variables of the options, and action
parse() {
  local argument option value known
  local all_values="config workdir name cache max_restarts ${values:-}"
  local all_lists="set ${lists:-}"
  read -ra known <<<"$all_values $all_lists ${switches:-}"
  action="${actions%% *}"
  while (($#)); do
    argument=$1
    shift
    case $argument in
      -h | --help) usage && shared_usage && exit 0 ;;
      --dry-run | --dry_run) dry_run=yes && continue ;;
      --)
        rest=("$@")
        break
        ;;
      --*) ;;
      *)
        contains "$actions" "$argument" ||
          fail "unexpected argument '$argument'; --help lists the ${actions:+actions and }options"
        action=$argument
        continue
        ;;
    esac
    option=${argument%%=*}
    option=${option#--}
    option=${option//-/_}
    if contains "${switches:-}" "$option"; then
      [[ $argument != *=* ]] || fail "--$option takes no value"
      printf -v "$option" yes
      continue
    fi
    contains "$all_values $all_lists" "$option" ||
      fail "unknown option --$option; there are ${known[*]/#/--} --dry-run;" \
        "flags of launch.train come after --"
    if [[ $argument == *=* ]]; then
      value=${argument#*=}
    else
      (($#)) || fail "--$option needs a value"
      value=$1
      shift
    fi
    if contains "$all_lists" "$option"; then
      local -n list="${option}_list"
      list+=("$value")
    else
      printf -v "$option" %s "$value"
    fi
  done
  check_whole max_restarts 0
}

# check VARIABLE PATTERN EXAMPLE: fails unless the option matches
check() {
  local -n checked=$1
  [[ -n $checked ]] || fail "--$1 is missing; for example --$1 $3"
  [[ $checked =~ ^($2)$ ]] || fail "--$1 cannot be '$checked'; for example --$1 $3"
}
# check_whole VARIABLE LEAST: a whole number
check_whole() {
  local -n whole=$1
  if [[ ! $whole =~ ^(0|[1-9][0-9]{0,5})$ ]] || ((whole < $2)); then
    fail "--$1 cannot be '$whole'; a whole number from $2 on, for example --$1 $(($2 + 1))"
  fi
}
check_name() { check name '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' unireal-256; }
# machines that share no disk need a workdir that all of them reach
check_bucket() { check workdir 'gs://[^/]+/.+' gs://bucket/runs/first; }

# make_train PYTHON: sets the array train to the command that every process is
make_train() {
  check config '.+' configs/unireal.py:stage=256
  check workdir '.+' gs://bucket/runs/first
  train=(env "JAX_COMPILATION_CACHE_DIR=${cache:-${workdir%/}/compilation_cache}")
  train+=("$1" -m launch.train --config "$config" --workdir "$workdir")
  [[ -z $distributed ]] || train+=("--distributed=$distributed")
  local override
  for override in "${set_list[@]}"; do
    train+=(--set "$override")
  done
  train+=("${rest[@]}")
}

# find_slice: sets the variables of launch/topologies.py for --topology
find_slice() {
  local facts key value
  [[ -n $topology ]] || fail "--topology is missing; for example --topology v5p:4x4x4"
  check_whole num_slices 1
  facts="$("$python" "$root/launch/topologies.py" "$topology" 2>&1)" || fail "--$facts"
  while IFS='=' read -r key value; do
    printf -v "$key" %s "$value"
  done <<<"$facts"
}

# kubernetes_literal TEXT: in a command, Kubernetes puts variables for $(NAME), and $ for $$
kubernetes_literal() { printf %s "${1//\$/\$\$}"; }

# json WORD...: the words as a JSON list, which is a YAML list too
json() {
  "$python" -c 'import json, sys; print(json.dumps(sys.argv[1:], ensure_ascii=False))' "$@"
}

# render FILE NAME=TEXT...: the file with the texts for its ${NAME}, without empty lines
render() {
  "$python" - "$@" <<'CODE'
import string, sys

text = open(sys.argv[1]).read()
text = string.Template(text).substitute(dict(word.split("=", 1) for word in sys.argv[2:]))
print("\n".join(line for line in text.splitlines() if line.strip()))
CODE
}
