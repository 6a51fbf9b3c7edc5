#!/usr/bin/env bash
# Kubernetes: GPU nodes as a plain indexed Job. Needs an image of launch/Dockerfile and a
# PersistentVolumeClaim that all pods can write (docs/launch.md).
#
#   launch/kubernetes.sh run --name=vit --image=REGISTRY/vit-jax:TAG --claim=shared --nodes=1 -- \
#       --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#
# A study, each node running a part of its trials, all in one workdir:
#
#   launch/kubernetes.sh run --name=shape --image=REGISTRY/vit-jax:TAG --claim=shared --nodes=4 -- \
#       study --config=configs/studies/shape.py:tfds:cifar10 --workdir=/shared/shape
#
# Also: status, logs, stop (saves and deletes the Job).
#
#   --gpus=8     GPUs per node; one pod takes a node, one process takes its GPUs
#   --cpus=, --memory=   what a pod requests; default: 4 cores and 16Gi for a GPU
#   --dry-run    print the YAML, run nothing
#
# Needs Kubernetes 1.29 or later. Exit codes: 1 and 2 end the Job, of a study only that pod; after any
# other, or when it is evicted, a pod is restarted, at most six times without a new saved step.

source "$(dirname "$0")/launcher.sh"
action=${1---help}
shift || true
[[ $action == -h || $action == --help ]] && help
name=vit image='' claim='' nodes=1 gpus=8 cpus='' memory=''
options 'name image claim nodes gpus cpus memory' "$@"
need kubectl "install it and set it up for your cluster"

job() {
  # shellcheck disable=SC2016 # Kubernetes fills in the index
  local words=(train "${train[@]}") fail=FailJob limit=backoffLimit index='$(JOB_COMPLETION_INDEX)'
  if [[ ${train[0]} == study ]]; then # the pods know nothing of each other
    words=("${train[@]}" "--trial=$index/$nodes") fail=FailIndex limit=backoffLimitPerIndex
  elif ((nodes > 1)); then
    words+=("--coordinator=$name-0.$name:8476" "--num_processes=$nodes" "--process_id=$index")
  fi
  render "$root/launch/kubernetes/gpu-job.yaml" "name=$name" "image=$image" "claim=$claim" \
    "nodes=$nodes" "gpus=$gpus" "cpus=${cpus:-$((4 * gpus))}" "memory=${memory:-$((16 * gpus))Gi}" \
    "env=$(json_env "$root/launch/env/gpu.env")" \
    "words=$(json_list "${words[@]}")" "fail=$fail" "limit=$limit"
}

case $action in
  run) yaml=$(job) && apply_manifest <<<"$yaml" ;;
  status) run kubectl get pods "--selector=job-name=$name" --output=wide ;;
  logs) newest_logs "job-name=$name" ;;
  stop) run kubectl delete "job/$name" "service/$name" ;;
esac
