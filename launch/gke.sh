#!/usr/bin/env bash
# GKE: TPU slices as a JobSet. Needs an image of launch/Dockerfile (--build-arg=EXTRA=tpu) and a
# PersistentVolumeClaim that all pods can write (docs/launch.md).
#
#   launch/gke.sh run --name=vit --image=REGION-docker.pkg.dev/P/R/vit-jax:TAG --claim=shared -- \
#       --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#
# Also: pool (makes the node pool), status, logs, stop (saves and deletes the JobSet).
#
#   --accelerator=tpu-v5-lite-podslice --topology=4x4 --slices=1   the slices; v6e: tpu-v6e-slice,
#                     v5p: tpu-v5p-slice, TPU7x: tpu7x
#   --cluster=CLUSTER --location=REGION --zone=ZONE [--spot]       for pool
#   --dry-run         print the YAML and the commands, run nothing
#
# Exit codes: 1 and 2 end the JobSet; 42, and pods that the cluster takes away, start it again.

source "$(dirname "$0")/launcher.sh"
action=${1---help}
shift || true
[[ $action == -h || $action == --help ]] && help
name=vit image='' claim='' accelerator=tpu-v5-lite-podslice topology=4x4 slices=1
cluster='' location='' zone='' spot=no
options 'name image claim accelerator topology slices cluster location zone spot' "$@"
[[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || die "--topology=$topology is not like 4x4 or 2x2x4."
hosts=$((${topology//x/*} / 4))
((hosts > 0)) || die "--topology=$topology has fewer than four chips; a machine has four."

case $accelerator in
  tpu-v5-lite-podslice) machine=ct5lp-hightpu-4t ;;
  tpu-v5p-slice) machine=ct5p-hightpu-4t ;;
  tpu-v6e-slice) machine=ct6e-standard-4t ;;
  tpu7x) machine=tpu7x-standard-4t ;;
  *) die "--accelerator=$accelerator: give tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice or" \
    "tpu7x." ;;
esac

pool() {
  need gcloud "install the Google Cloud CLI and run gcloud auth login"
  [[ $cluster && $location && $zone ]] || usage "--cluster, --location and --zone are needed."
  local slice words=("--cluster=$cluster" "--location=$location" "--node-locations=$zone"
    "--machine-type=$machine" "--num-nodes=$hosts" --scopes=cloud-platform)
  [[ $spot == no ]] || words+=(--spot)
  if [[ $accelerator == tpu7x ]]; then
    run gcloud compute resource-policies create workload-policy "$name-$topology" \
      "--region=${zone%-*}" --type=HIGH_THROUGHPUT "--accelerator-topology=$topology"
    words+=("--placement-policy=$name-$topology")
  else
    words+=("--tpu-topology=$topology")
  fi
  for ((slice = 0; slice < slices; slice++)); do
    run gcloud container node-pools create "$name-$slice" "${words[@]}"
  done
}

job() {
  [[ $image ]] || usage "--image=IMAGE is needed."
  [[ $claim ]] || usage "--claim=NAME of a PersistentVolumeClaim is needed."
  check_train
  render "$root/launch/gke/jobset.yaml" "name=$name" "image=$image" "claim=$claim" \
    "accelerator=$accelerator" "topology=$topology" "slices=$slices" "hosts=$hosts" \
    "env=$(json_env "$root/launch/env/tpu.env")" "train=$(json_list train "${train[@]}")"
}

[[ $action == pool ]] || need kubectl "install it and run gcloud container clusters get-credentials"
case $action in
  pool) pool ;;
  run) yaml=$(job) && apply_manifest <<<"$yaml" ;;
  status) run kubectl get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide ;;
  logs) run kubectl logs --follow "job/$name-slice-0" ;;
  stop) run kubectl delete jobset "$name" ;;
  *) usage "there is no action $action." ;;
esac
