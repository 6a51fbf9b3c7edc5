#!/usr/bin/env bash
# GKE with xpk (pip install xpk), on a cluster that `xpk cluster create` made:
#
#   launch/xpk.sh --name=vit --cluster=CLUSTER --zone=us-west4-a --type=v5litepod-16 \
#       --image=REGION-docker.pkg.dev/P/R/vit-jax:TAG --storage=NAME -- \
#       --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#
#   --storage=NAME              an xpk storage, attached with mount point /shared
#   --slices=1                  more than one: a multislice job
#   --project=PROJECT           default: gcloud's own
#   --dry-run                   print the command, run nothing
#
# Logs and stop: xpk workload list, xpk workload delete. After exit codes 42, 75, 134 and 137 the workload
# is restarted, at most six times without a new saved step; after an error it is not.

source "$(dirname "$0")/launcher.sh"
name=vit cluster='?' zone='?' project='' type=v5litepod-16 slices=1 image='?' storage='?'
options 'name cluster zone project type slices image storage' "$@"
need xpk "pip install xpk"

words=("--workload=$name" "--cluster=$cluster" "--zone=$zone" "--tpu-type=$type"
  "--num-slices=$slices" "--docker-image=$image" "--storage=$storage" "--env-file=$root/launch/env/tpu.env"
  --max-restarts=1000 "--restart-on-exit-codes=42,75")
[[ -z $project ]] || words+=("--project=$project")
run xpk workload create "${words[@]}" \
  "--command=exec python /vit_jax/launch/restart.py run vit-jax train $(quoted "${train[@]}")"
