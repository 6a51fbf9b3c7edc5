# Sourced by the launchers: options, dry runs, errors.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=launch/$(basename "$0")
dry_run=no
# shellcheck disable=SC2034 # by the launchers
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

# options 'NAME ...' WORDS...: checks what was typed, see check.py; sets the variable of each
# --NAME=VALUE, and the array train to what follows `--`. The launcher assigns the defaults; ? must be
# given, and no means that --NAME alone is yes.
options() {
  local option value defaults=() assignments
  for option in $1; do
    value=${option//-/_}
    defaults+=("$option=${!value}")
  done
  shift
  for option; do
    [[ $option != -h && $option != --help ]] || help
    [[ $option != -- ]] || break
  done
  command -v python3 >/dev/null || die "there is no python3 here; install it."
  assignments=$(python3 -B "$root/launch/check.py" "${program#launch/}" "${action-}" \
    "${defaults[@]}" -- "$@") || exit
  eval "$assignments"
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
  local tree='' # a commit outside of all branches
  [[ $dry_run == yes ]] ||
    tree=$(git -C "$root" -c user.name=launch -c user.email=launch@localhost stash create)
  [[ -z $(git -C "$root" ls-files --others --exclude-standard) ]] ||
    echo "$program: warning: new files are sent only after git add" >&2
  run git -C "$root" archive --format=tar.gz --output="$1" "${tree:-HEAD}"
}

# together FUNCTION HOSTS...: FUNCTION HOST for all hosts at once; false if it fails for one of them.
together() {
  local what=$1 host failed=0 jobs=()
  shift
  for host; do
    if [[ $dry_run == yes ]]; then "$what" "$host" && continue || return; fi
    "$what" "$host" &
    jobs+=($!)
    if ((${#jobs[@]} >= 32)); then # each is a process of gcloud's
      wait "${jobs[0]}" || failed=$?
      jobs=("${jobs[@]:1}")
    fi
  done
  for host in "${jobs[@]}"; do wait "$host" || failed=$?; done
  return "$failed"
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

# json_list WORDS...: ["...", ...], which is also YAML. Kubernetes replaces $(NAME), but not $$(NAME):
# what was typed stays as it is, and only the index is replaced.
json_list() {
  # shellcheck disable=SC2016 # Python's
  python3 -c 'import json, re, sys
typed = re.compile(r"\$\((?!JOB_COMPLETION_INDEX\))")
print(json.dumps([typed.sub("$$(", word) for word in sys.argv[1:]]))' "$@"
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

# newest_logs SELECTOR: follows the whole log of the newest pod of rank 0; each try is a pod.
newest_logs() {
  local pod list=(kubectl get pods
    "--selector=$1,batch.kubernetes.io/job-completion-index=0"
    --sort-by=.metadata.creationTimestamp --output=name)
  if [[ $dry_run == yes ]]; then
    quoted "${list[@]}"
    pod=pod/NEWEST
  else
    pod=$("${list[@]}") || exit
    pod=${pod##*$'\n'}
    [[ $pod ]] || die "there is no pod of that name; see $program status."
  fi
  run kubectl logs --follow "$pod"
}

# render TEMPLATE NAME=VALUE...: the template with ${NAME} replaced, on standard output.
render() {
  python3 "$root/launch/render.py" "$@"
}
