#!/usr/bin/env bash
# GKE: TPU slices as a JobSet. Needs an image of launch/Dockerfile (--build-arg=EXTRA=tpu) and a
# PersistentVolumeClaim that all pods can write (docs/launch.md).
#
#   launch/gke.sh run --name=vit --image=REGION-docker.pkg.dev/P/R/vit-jax:TAG --claim=shared -- \
#       --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#
# Also: pool (creates the node pool), status, logs, stop (saves and deletes the JobSet).
#
#   --accelerator=tpu-v5-lite-podslice --topology=4x4 --slices=1   the slices; v6e: tpu-v6e-slice,
#                     v5p: tpu-v5p-slice, TPU7x: tpu7x
#   --cluster=CLUSTER --location=REGION --zone=ZONE [--spot]       for pool
#   --dry-run         print the YAML and the commands, run nothing
#
# Needs Kubernetes 1.29 and JobSet 0.6, or later. Exit codes: 1 and 2 end the JobSet; after any other,
# or when pods are evicted, it is restarted, at most six times without a new saved step.

source "$(dirname "$0")/launcher.sh"
action=${1---help}
shift || true
[[ $action == -h || $action == --help ]] && help
name=vit image='' claim='' accelerator=tpu-v5-lite-podslice topology=4x4 slices=1
cluster='' location='' zone='' spot=no hosts='' machine=''
options 'name image claim accelerator topology slices cluster location zone spot' "$@"

pool() {
  need gcloud "install the Google Cloud CLI and run gcloud auth login"
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
  render "$root/launch/gke/jobset.yaml" "name=$name" "image=$image" "claim=$claim" \
    "accelerator=$accelerator" "topology=$topology" "slices=$slices" "hosts=$hosts" \
    "env=$(json_env "$root/launch/env/tpu.env")" "train=$(json_list train "${train[@]}")"
}

[[ $action == pool ]] || need kubectl "install it and run gcloud container clusters get-credentials"
case $action in
  pool) pool ;;
  run) yaml=$(job) && apply_manifest <<<"$yaml" ;;
  status) run kubectl get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide ;;
  logs) newest_logs "jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0" ;;
  stop) run kubectl delete jobset "$name" ;;
esac
