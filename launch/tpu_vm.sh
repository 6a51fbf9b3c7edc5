#!/usr/bin/env bash
# Cloud TPU VMs, v2 to v6e (TPU7x has no such API: launch/compute_engine.sh). One command creates
# the TPU, sets it up, trains, and starts over when a spot TPU is taken away, until the run is done:
#
#   launch/tpu_vm.sh babysit --name=vit --zone=us-west4-a --type=v5litepod-16 --spot \
#       --shared=gs://BUCKET -- --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#
# Or step by step: create, wait, setup, run, status, logs, stop, delete, with the same options.
#
#   --name=NAME --zone=ZONE   which TPU; needed by all actions
#   --type=v5litepod-16       accelerator type; --version=... if not the type's own runtime
#   --slices=1                more than one: a multislice job
#   --spot, --reserved        how it is paid for; default: on demand
#   --shared=gs://BUCKET      mounted on /shared of every host; HOST:/EXPORT for NFS
#   --project=PROJECT         default: gcloud's own
#   --dry-run                 print the commands, run nothing
#
# Exit codes of a run: 42, preempted after saving, is retried; 1, an error, is not.

source "$(dirname "$0")/launcher.sh"
action=${1---help}
shift || true
[[ $action == -h || $action == --help ]] && help
name='?' zone='?' project='' type=v5litepod-16 version='' slices=1 spot=no reserved=no shared=''
poll=30 restarts=100
options 'name zone project type version slices spot reserved shared poll restarts' "$@"
need gcloud "install the Google Cloud CLI and run gcloud auth login"
[[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices=$slices is not a positive number."
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || die "--name=$name: small letters, digits and -."

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
nodes=("$name")
if ((slices > 1)); then
  nodes=()
  for ((slice = 0; slice < slices; slice++)); do nodes+=("$name-$slice"); done
fi

# runtime: the software version that goes with the accelerator type.
runtime() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) die "--type=$type: give v2-, v3-, v4-, v5litepod-, v5p- or v6e-N, or --version=RUNTIME." ;;
  esac
}

# request: what has become of the request for this TPU, such as ACTIVE or SUSPENDED; NONE without one.
request() {
  local out
  if out=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>&1); then
    echo "${out##*$'\n'}"
  elif [[ $out == *NOT_FOUND* || $out == *'not found'* ]]; then
    echo NONE
  else
    die "gcloud: ${out##*$'\n'}"
  fi
}

create() {
  version=${version:-$(runtime)} || exit 1
  if [[ $dry_run == no ]]; then
    local now
    now=$(request) || exit 1
    [[ $now == NONE ]] || die "$name exists in $zone ($now); delete it or use another --name."
  fi
  local words=("--accelerator-type=$type" "--runtime-version=$version")
  if ((slices > 1)); then
    words+=("--node-count=$slices" "--node-prefix=$name")
  else
    words+=("--node-id=$name")
  fi
  [[ $spot == no ]] || words+=(--spot)
  [[ $reserved == no ]] || words+=(--reserved)
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" "${words[@]}"
}

# wait_active: until the TPU is there; false when it was taken away.
wait_active() {
  if [[ $dry_run == yes ]]; then
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
      '--format=value(state.state)'
    return
  fi
  local now before=''
  while true; do
    now=$(request) || exit 1
    [[ $now == "$before" ]] || echo "$name: $now" >&2
    before=$now
    case $now in
      ACTIVE) return ;;
      SUSPENDING | SUSPENDED) return 1 ;;
      NONE) die "there is no $name in $zone; create it first." ;;
      FAILED) die "the request for $name failed; gcloud compute tpus queued-resources describe" \
        "$name --zone=$zone says why." ;;
    esac
    sleep "$poll"
  done
}

# on_hosts WORKER COMMAND: runs a command on one host, or all, of every slice.
on_hosts() {
  local node
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" "--worker=$1" "--command=$2" || return
  done
}

worker() {
  on_hosts all "$(worker_command "$@")"
}

setup() {
  local archive=vit_jax.tar.gz node
  [[ $dry_run == yes ]] || archive=$(mktemp --suffix=.tar.gz)
  pack "$archive" || return
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:vit_jax.tar.gz" "${where[@]}" \
      --worker=all || return
  done
  [[ $dry_run == yes ]] || rm -f "$archive"
  on_hosts all "$(install_command "$shared")"
}

start() {
  worker start "${train[@]}"
}

# job: what all hosts together say, in one word.
job() {
  local said
  said=$(on_hosts all "if [ -e vit_jax/launch/worker.sh ];\
 then bash vit_jax/launch/worker.sh status; else echo none; fi" 2>/dev/null) || true
  says() { grep -qxE "$1" <<<"$said"; }
  if says 'exit [12]'; then
    echo failed
  elif says running; then
    echo running
  elif says stopped; then
    echo stopped
  elif says 'none|lost|exit [3-9]|exit [0-9]{2,}'; then
    echo idle
  elif says 'exit 0'; then
    echo finished
  else
    echo unreachable
  fi
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

babysit() {
  local starts=0 failures=0 now
  while true; do
    now=$(request) || exit 1
    case $now in
      NONE) create ;;
      SUSPENDING) sleep "$poll" && continue ;;
      SUSPENDED) delete && continue ;;
    esac
    wait_active || continue
    now=$(job)
    [[ $now == failed ]] || failures=0
    case $now in
      idle)
        ((starts += 1))
        ((starts <= restarts)) || die "started $restarts times without an end; see the logs."
        echo "$name: start $starts" >&2
        { setup && start; } || {
          echo "$program: warning: not all hosts could be started; trying again" >&2
          worker stop || true
        }
        ;;
      finished)
        echo "$name: the run is done" >&2
        delete
        return
        ;;
      stopped) die "the run was stopped by hand and has saved; the TPU is paid for until delete." ;;
      failed) # hosts that lose the others may fail just before a TPU is taken away: look twice
        ((failures += 1))
        ((failures < 2)) || die "the run ended with an error, see $program logs --name=$name" \
          "--zone=$zone; the TPU is paid for until delete."
        ;;
    esac
    sleep "$poll"
  done
}

case $action in
  create | setup) "$action" ;;
  wait) wait_active || die "$name was taken away; delete it and create it again." ;;
  run) check_train && start ;;
  status) worker status ;;
  logs) nodes=("${nodes[0]}") && on_hosts 0 "$(worker_command logs)" ;;
  stop) worker stop ;;
  delete)
    worker stop ||
      echo "$program: warning: the run could not be asked to save; its last checkpoint counts" >&2
    delete
    ;;
  babysit)
    check_train
    [[ $shared && $workdir == /shared/* ]] || die "babysit deletes the TPU and its disks at the" \
      "end; give --shared=gs://BUCKET and a --workdir in /shared, to keep the run."
    if [[ $dry_run == yes ]]; then
      create && wait_active && setup && start && worker status && delete
    else
      babysit
    fi
    ;;
  *) usage "there is no action $action." ;;
esac
