#!/usr/bin/env bash
# Cloud TPU VMs, v2 to v6e (TPU7x has no such API: launch/compute_engine.sh). One command creates
# the TPU, sets it up, trains, and requests another when a spot TPU is preempted, until the run is done:
#
#   launch/tpu_vm.sh babysit --name=vit --zone=us-west4-a --type=v5litepod-16 --spot \
#       --shared=gs://BUCKET -- --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#
# Or step by step: create, wait, setup, run, status, logs, stop, delete, with the same options.
#
#   --name=NAME --zone=ZONE   which TPU; required by all actions
#   --type=v5litepod-16       accelerator type; --version=... if not the type's own runtime
#   --slices=1                more than one: a multislice job
#   --spot, --reserved        pricing; default: on demand
#   --restarts=10             babysit gives up after so many starts without a new saved step
#   --shared=gs://BUCKET      mounted on /shared of every host; HOST:/EXPORT for NFS
#   --project=PROJECT         default: gcloud's own
#   --dry-run                 print the commands, run nothing
#
# Every host restarts the run if it was asked to stop and has saved (42), or if another process died
# (134, 137) or did not join (75): at most five times without a new saved step. An error, or anything
# else, is not restarted.

source "$(dirname "$0")/launcher.sh"
action=${1---help}
shift || true
[[ $action == -h || $action == --help ]] && help
name='?' zone='?' project='' type=v5litepod-16 version='' slices=1 spot=no reserved=no shared=''
poll=30 restarts=10
options 'name zone project type version slices spot reserved shared poll restarts' "$@"
need gcloud "install the Google Cloud CLI and run gcloud auth login"

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
    die "gcloud: $out"
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

# on_hosts WORKER COMMAND: runs a command on one host, or all, of every slice; false if one fails.
on_hosts() {
  worker=$1 command=$2
  on_node() {
    run gcloud compute tpus tpu-vm ssh "$1" "${where[@]}" "--worker=$worker" "--command=$command"
  }
  together on_node "${nodes[@]}"
}

worker() {
  on_hosts all "$(worker_command "$@")"
}

setup() {
  archive=vit_jax.tar.gz
  [[ $dry_run == yes ]] || archive=$(mktemp --suffix=.tar.gz)
  pack "$archive" || return
  copy() {
    run gcloud compute tpus tpu-vm scp "$archive" "$1:vit_jax.tar.gz" "${where[@]}" --worker=all
  }
  together copy "${nodes[@]}" || return 255
  [[ $dry_run == yes ]] || rm -f "$archive"
  on_hosts all "$(install_command "$shared")"
}

start() {
  worker start "${train[@]}"
}

# stop: one that stops tells the others through JAX, so all must know first that they stay stopped.
stop() {
  local failed=0
  worker hold || failed=$?
  worker stop || failed=$?
  ((failed == 0)) || echo "$program: error: not all hosts could be told; see status" >&2
  return "$failed"
}

# saved: how many steps are on the disk, as the first host sees it; nothing if that is not known.
saved() {
  local said first=${nodes[0]}
  local nodes=("$first")
  said=$(on_hosts 0 "$(worker_command saved "${train[@]}")" 2>/dev/null) || true
  [[ ! $said =~ ^-?[0-9]+$ ]] || echo "$said"
}

# job: what all hosts together say, in one word.
job() {
  local said again
  again=$(python3 "$root/launch/restart.py" codes)
  said=$(on_hosts all "if [ -e vit_jax/launch/worker.sh ];\
 then bash vit_jax/launch/worker.sh status; else echo none; fi" 2>/dev/null) || true
  says() { grep -qxE "$1" <<<"$said"; }
  if grep -xE 'exit [0-9]+' <<<"$said" | grep -qvxE "exit (0|${again// /|})"; then
    echo failed
  elif says running; then
    echo running
  elif says stopped; then
    echo stopped
  elif says "none|lost|exit (${again// /|})"; then
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
  local starts=0 failures=0 installs=0 unreached=0 in_vain=0 step=-1 code now
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
        echo "$name: start $starts" >&2
        code=0
        setup || code=$?
        if ((code == 0)); then
          installs=0
          now=$(saved)
          if [[ $now && $now -gt $step ]]; then step=$now in_vain=0; fi
          ((in_vain < restarts)) || die "started $in_vain times without saving anything beyond step" \
            "$step; see $program logs. The TPU is paid for until delete."
          ((in_vain += 1))
          start || code=$?
        elif ((code != 255)); then # 255 is ssh's own: a host that cannot be reached
          ((installs += 1))
          ((installs < 5)) || die "the installation failed five times, see above; the TPU is paid" \
            "for until delete."
        fi
        ((code == 0)) || {
          ((unreached += 1))
          ((unreached < 30)) || die "the hosts could not be started 30 times in a row, see above;" \
            "the TPU is paid for until delete."
          echo "$program: warning: not all hosts could be started; trying again" >&2
          stop 2>/dev/null || true
        }
        ((code != 0)) || unreached=0
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
  stop) stop ;;
  wait) wait_active || die "$name was taken away; delete it and create it again." ;;
  run) start ;;
  status) worker status ;;
  logs) nodes=("${nodes[0]}") && on_hosts 0 "$(worker_command logs)" ;;
  delete)
    stop ||
      echo "$program: warning: the run could not be asked to save; its last checkpoint counts" >&2
    delete
    ;;
  babysit)
    if [[ $dry_run == yes ]]; then
      create && wait_active && setup && start && worker status && delete
    else
      babysit
    fi
    ;;
esac
