#!/usr/bin/env bash
# TPU slices as Compute Engine machines: the way to TPU7x outside of Kubernetes, for v6e too.
#
#   launch/compute_engine.sh create --name=vit --project=P --zone=us-central1-c --topology=2x2x4
#   launch/compute_engine.sh wait   --name=vit --project=P --zone=us-central1-c
#   launch/compute_engine.sh setup  --name=vit --project=P --zone=us-central1-c --shared=gs://BUCKET
#   launch/compute_engine.sh run    --name=vit --project=P --zone=us-central1-c -- \
#       --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#
# Then: status, logs, stop, delete. A host starts the run again when it ends with 42.
#
#   --name=NAME --project=PROJECT --zone=ZONE   needed by all actions
#   --topology=2x2x4      chips; four to a machine, so this is four machines
#   --machine=tpu7x-standard-4t   --image-family=ubuntu-accel-2404-amd64-tpu-tpu7x; for v6e
#                         ct6e-standard-4t and ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e
#   --spot, --reservation=NAME    how it is paid for; default: on demand
#   --shared=gs://BUCKET  mounted on /shared of every host; HOST:/EXPORT for NFS
#   --dry-run             print the commands, run nothing

source "$(dirname "$0")/launcher.sh"
action=${1---help}
shift || true
[[ $action == -h || $action == --help ]] && help
name='?' project='?' zone='?' topology=2x2x4 machine=tpu7x-standard-4t spot=no reservation=''
image_family=ubuntu-accel-2404-amd64-tpu-tpu7x shared=''
options 'name project zone topology machine image-family spot reservation shared' "$@"
need gcloud "install the Google Cloud CLI and run gcloud auth login"
[[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || die "--topology=$topology is not like 2x2x4 or 4x4."
machines=$((${topology//x/*} / 4))
((machines > 0)) || die "--topology=$topology has fewer than four chips; a machine has four."
region=${zone%-*}
in_zone=("--project=$project" "--zone=$zone")

create() {
  local template=("--machine-type=$machine" "--image-family=$image_family"
    --image-project=ubuntu-os-accelerator-images --maintenance-policy=TERMINATE
    --boot-disk-type=hyperdisk-balanced --boot-disk-size=200GB
    --network-interface=nic-type=GVNIC --scopes=cloud-platform)
  local group=("--size=$machines" "--template=$name")
  if [[ $reservation ]]; then
    template+=(--provisioning-model=RESERVATION_BOUND --reservation-affinity=specific
      "--reservation=$reservation")
  elif [[ $spot == yes ]]; then
    template+=(--provisioning-model=SPOT --instance-termination-action=STOP)
  fi
  if ((machines > 1)); then
    run gcloud compute resource-policies create workload-policy "$name" "--project=$project" \
      "--region=$region" --type=HIGH_THROUGHPUT "--accelerator-topology=$topology"
    group+=("--workload-policy=projects/$project/regions/$region/resourcePolicies/$name"
      --target-size-policy-mode=bulk)
  fi
  run gcloud compute instance-templates create "$name" "--project=$project" "${template[@]}"
  run gcloud alpha compute instance-groups managed create "$name" "${in_zone[@]}" "${group[@]}"
}

# hosts: the names of the machines, one a line.
hosts() {
  local list=(gcloud compute instance-groups managed list-instances "$name" "${in_zone[@]}"
    '--format=value(instance.basename())')
  if [[ $dry_run == yes ]]; then
    quoted "${list[@]}" >&2
    for ((i = 0; i < machines; i++)); do echo "$name-$i"; done
  else
    "${list[@]}" | sort
  fi
}

on_hosts() {
  local host all
  all=$(hosts)
  [[ $all ]] || die "$name has no machines in $zone; create it first."
  for host in $all; do
    run gcloud compute ssh "$host" "${in_zone[@]}" "--command=$1"
  done
}

setup() {
  local archive=vit_jax.tar.gz host all
  [[ $dry_run == yes ]] || archive=$(mktemp --suffix=.tar.gz)
  pack "$archive"
  all=$(hosts)
  for host in $all; do
    run gcloud compute scp "$archive" "$host:vit_jax.tar.gz" "${in_zone[@]}"
  done
  [[ $dry_run == yes ]] || rm -f "$archive"
  on_hosts "$(install_command "$shared")"
}

delete() {
  on_hosts "$(worker_command stop)" ||
    echo "$program: warning: the run could not be asked to save; its last checkpoint counts" >&2
  run gcloud compute instance-groups managed delete "$name" "${in_zone[@]}" --quiet
  run gcloud compute instance-templates delete "$name" "--project=$project" --quiet
  ((machines == 1)) || run gcloud compute resource-policies delete "$name" \
    "--project=$project" "--region=$region" --quiet
}

case $action in
  create | setup | delete) "$action" ;;
  wait) run gcloud compute instance-groups managed wait-until "$name" "${in_zone[@]}" --stable ;;
  run)
    check_train
    on_hosts "$(worker_command start "${train[@]}")"
    ;;
  status | stop) on_hosts "$(worker_command "$action")" ;;
  logs)
    all=$(hosts)
    run gcloud compute ssh "${all%%$'\n'*}" "${in_zone[@]}" "--command=$(worker_command logs)"
    ;;
  *) usage "there is no action $action." ;;
esac
