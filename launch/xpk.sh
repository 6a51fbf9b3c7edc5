#!/usr/bin/env bash
# GKE with xpk (pip install xpk), on a cluster that `xpk cluster create` made:
#
#   launch/xpk.sh --name=vit --cluster=CLUSTER --zone=us-west4-a --type=v5litepod-16 \
#       --image=REGION-docker.pkg.dev/P/R/vit-jax:TAG -- \
#       --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#
#   --slices=1 --storage=NAME   an xpk storage, attached with mount point /shared
#   --project=PROJECT           default: gcloud's own
#   --dry-run                   print the command, run nothing
#
# Logs and stop: xpk workload list, xpk workload delete. 42 starts the workload again, 1 does not.

source "$(dirname "$0")/launcher.sh"
name=vit cluster='?' zone='?' project='' type=v5litepod-16 slices=1 image='?' storage=''
options 'name cluster zone project type slices image storage' "$@"
need xpk "pip install xpk"
check_train

words=("--workload=$name" "--cluster=$cluster" "--zone=$zone" "--tpu-type=$type"
  "--num-slices=$slices" "--docker-image=$image" "--env-file=$root/launch/env/tpu.env"
  --max-restarts=100 --restart-on-exit-codes=42)
[[ -z $project ]] || words+=("--project=$project")
[[ -z $storage ]] || words+=("--storage=$storage")
run xpk workload create "${words[@]}" "--command=exec vit-jax train $(quoted "${train[@]}")"
