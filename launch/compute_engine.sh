#!/usr/bin/env bash
# TPU slices as Compute Engine machines: for TPU7x without Kubernetes, and v6e.
#
#   launch/compute_engine.sh create --name=vit --project=P --zone=us-central1-c --topology=2x2x4
#   launch/compute_engine.sh wait   --name=vit --project=P --zone=us-central1-c
#   launch/compute_engine.sh setup  --name=vit --project=P --zone=us-central1-c --shared=gs://BUCKET
#   launch/compute_engine.sh run    --name=vit --project=P --zone=us-central1-c -- \
#       --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#
# Then: status, logs, stop, delete. Every host restarts the run if it was asked to stop and has saved
# (42), or if another process died (134, 137) or did not join (75): at most five times without a new
# saved step. Nothing else is restarted.
#
#   --name=NAME --project=PROJECT --zone=ZONE   required by all actions
#   --topology=2x2x4      chips; four to a machine, so this is four machines
#   --machine=tpu7x-standard-4t   ct6e-standard-4t for v6e, with a topology like 4x4;
#                         --image-family=... if not the machine's own
#   --spot, --reservation=NAME    pricing; default: on demand
#   --shared=gs://BUCKET  mounted on /shared of every host; HOST:/EXPORT for NFS
#   --dry-run             print the commands, run nothing

source "$(dirname "$0")/launcher.sh"
action=${1---help}
shift || true
[[ $action == -h || $action == --help ]] && help
name='?' project='?' zone='?' topology=2x2x4 machine=tpu7x-standard-4t spot=no reservation=''
image_family='' shared='' hosts=''
options 'name project zone topology machine image-family spot reservation shared' "$@"
need gcloud "install the Google Cloud CLI and run gcloud auth login"
region=${zone%-*}
in_zone=("--project=$project" "--zone=$zone")

create() {
  local template=("--machine-type=$machine" "--image-family=$image_family"
    --image-project=ubuntu-os-accelerator-images --maintenance-policy=TERMINATE
    --boot-disk-type=hyperdisk-balanced --boot-disk-size=200GB
    --network-interface=nic-type=GVNIC --scopes=cloud-platform)
  local group=("--size=$hosts" "--template=$name")
  if [[ $reservation ]]; then
    template+=(--provisioning-model=RESERVATION_BOUND --reservation-affinity=specific
      "--reservation=$reservation")
  elif [[ $spot == yes ]]; then
    template+=(--provisioning-model=SPOT --instance-termination-action=STOP)
  fi
  if ((hosts > 1)); then
    run gcloud compute resource-policies create workload-policy "$name" "--project=$project" \
      "--region=$region" --type=HIGH_THROUGHPUT "--accelerator-topology=$topology"
    group+=("--workload-policy=projects/$project/regions/$region/resourcePolicies/$name"
      --target-size-policy-mode=bulk)
  fi
  run gcloud compute instance-templates create "$name" "--project=$project" "${template[@]}"
  run gcloud alpha compute instance-groups managed create "$name" "${in_zone[@]}" "${group[@]}"
}

# machines: sets the array `all` to the names of the machines.
machines() {
  local names list=(gcloud compute instance-groups managed list-instances "$name" "${in_zone[@]}"
    '--format=value(instance.basename())')
  all=()
  if [[ $dry_run == yes ]]; then
    quoted "${list[@]}" >&2
    for ((i = 0; i < hosts; i++)); do all+=("$name-$i"); done
    return
  fi
  names=$("${list[@]}" | sort) || exit
  [[ $names || $action == delete ]] || die "$name has no machines in $zone; create it first."
  [[ -z $names ]] || mapfile -t all <<<"$names"
}

# on_hosts COMMAND: on all machines at once; false if it fails on one.
on_hosts() {
  command=$1
  on_host() { run gcloud compute ssh "$1" "${in_zone[@]}" "--command=$command"; }
  together on_host "${all[@]}"
}

setup() {
  archive=vit_jax.tar.gz
  [[ $dry_run == yes ]] || archive=$(mktemp --suffix=.tar.gz)
  pack "$archive"
  # shellcheck disable=SC2317 # called by together
  copy() { run gcloud compute scp "$archive" "$1:vit_jax.tar.gz" "${in_zone[@]}"; }
  together copy "${all[@]}"
  [[ $dry_run == yes ]] || rm -f "$archive"
  on_hosts "$(install_command "$shared")"
}

# stop: one that stops tells the others through JAX, so all must know first that they stay stopped.
stop() {
  local failed=0
  on_hosts "$(worker_command hold)" || failed=$?
  on_hosts "$(worker_command stop)" || failed=$?
  ((failed == 0)) || echo "$program: error: not all hosts could be told; see status" >&2
  return "$failed"
}

delete() {
  stop ||
    echo "$program: warning: the run could not be asked to save; its last checkpoint counts" >&2
  run gcloud compute instance-groups managed delete "$name" "${in_zone[@]}" --quiet
  run gcloud compute instance-templates delete "$name" "--project=$project" --quiet
  ((hosts == 1)) || run gcloud compute resource-policies delete "$name" \
    "--project=$project" "--region=$region" --quiet
}

case $action in
  create) create ;;
  wait) run gcloud compute instance-groups managed wait-until "$name" "${in_zone[@]}" --stable ;;
  *)
    machines
    case $action in
      setup | stop | delete) "$action" ;;
      run) on_hosts "$(worker_command start "${train[@]}")" ;;
      status) on_hosts "$(worker_command status)" ;;
      logs) all=("${all[0]}") && on_hosts "$(worker_command logs)" ;;
    esac
    ;;
esac
