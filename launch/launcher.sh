# Sourced by the launchers: options, dry runs, errors, and the check of what follows `--`.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=launch/$(basename "$0")
dry_run=no
train=()

die() {
  echo "$program: error: $*" >&2
  exit 1
}

usage() {
  echo "$program: $* See $program --help." >&2
  exit 2
}

# help: the comment at the top of the launcher.
help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
}

# options 'NAME ...' WORDS...: sets the variable of each --NAME=VALUE (--NAME alone means yes), and
# the array train to what follows `--`. The launcher assigns the defaults; ? must be given.
options() {
  local known=" dry-run $1 " option value
  shift
  while (($#)); do
    [[ $1 != -h && $1 != --help ]] || help
    if [[ $1 == -- ]]; then
      train=("${@:2}")
      break
    fi
    option=${1#--}
    value=yes
    [[ $option != *=* ]] || value=${option#*=}
    option=${option%%=*}
    [[ $1 == --?* && $known == *" $option "* ]] || usage "there is no option $1."
    printf -v "${option//-/_}" '%s' "$value"
    shift
  done
  for option in $known; do
    value=${option//-/_}
    [[ ${!value} != '?' ]] || usage "--$option=... is needed."
  done
}

# check_train: what follows `--` is a training command that works on every host; sets workdir.
check_train() {
  local word config=''
  workdir=''
  for word in "${train[@]}"; do
    case $word in
      --config=*) config=${word#*=} ;;
      --workdir=*) workdir=${word#*=} ;;
    esac
  done
  [[ $config ]] || usage "-- --config=FILE is needed."
  [[ $workdir ]] || usage "-- --workdir=DIR is needed."
  [[ $workdir == /* ]] || die "--workdir=$workdir is not a path that starts with /; every host" \
    "must see the same directory, so mount the bucket or disk (docs/launch.md)."
}

# quoted WORDS...: one line that a shell reads as these words.
quoted() {
  local word line=''
  for word; do
    [[ $word =~ ^[][A-Za-z0-9_@%+=:,./{}-]+$ && $word != *[\[\]{}]* ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

# run WORDS...: runs a command and says so, or with --dry-run only says so.
run() {
  if [[ $dry_run == yes ]]; then
    quoted "$@"
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

# need PROGRAM ADVICE
need() {
  [[ $dry_run == yes ]] || command -v "$1" >/dev/null || die "there is no $1 here; $2."
}

# pack FILE: the source tree as a .tar.gz: all that git knows of, with changes not yet committed.
pack() {
  local tree=''
  [[ $dry_run == yes ]] || tree=$(git -C "$root" stash create) # a commit outside of all branches
  [[ -z $(git -C "$root" ls-files --others --exclude-standard) ]] ||
    echo "$program: warning: new files are sent only after git add" >&2
  run git -C "$root" archive --format=tar.gz --output="$1" "${tree:-HEAD}"
}

# install_command SHARED: what a host does with the source that `pack` made.
install_command() {
  echo 'rm -rf vit_jax.new && mkdir vit_jax.new && tar -xzf vit_jax.tar.gz -C vit_jax.new &&' \
    "bash vit_jax.new/launch/worker.sh install $(quoted ${1:+"$1"})"
}

# worker_command WORDS...: what a host is told, see worker.sh.
worker_command() {
  echo "bash vit_jax/launch/worker.sh $(quoted "$@")"
}

# json_list WORDS...: ["...", ...], which is also YAML.
json_list() {
  python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@"
}

# json_env FILE: the NAME=VALUE lines of a file as the `env` of a container.
json_env() {
  python3 -c 'import json, sys
pairs = (line.strip().split("=", 1) for line in open(sys.argv[1]) if line.strip(" \n")[:1] not in "#")
print(json.dumps([{"name": name, "value": value} for name, value in pairs]))' "$1"
}

# apply_manifest: gives the YAML on standard input to the cluster, or with --dry-run prints it.
apply_manifest() {
  if [[ $dry_run == yes ]]; then cat; else kubectl create --filename=-; fi
}

# render TEMPLATE NAME=VALUE...: the template with ${NAME} replaced, on standard output.
render() {
  python3 "$root/launch/render.py" "$@"
}
