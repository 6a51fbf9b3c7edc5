#!/usr/bin/env bash
# SkyPilot (pip install 'skypilot[gcp]'): finds a cloud with room, and moves when preempted.
#
#   launch/skypilot.sh gpu --name=vit --nodes=1 --shared=gs://BUCKET -- \
#       --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#   launch/skypilot.sh tpu --name=vit --shared=gs://BUCKET -- --config=... --workdir=/shared/...
#
#   --shared=gs://BUCKET   mounted on /shared; S3 and other stores as SkyPilot names them
#   --dry-run              print the task and the command, run nothing
#
# What is asked for stands in launch/skypilot/gpu.yaml and tpu.yaml. Logs and stop: sky jobs logs,
# sky jobs cancel. 42, and machines that are taken away, start the task again; 1 does not.

source "$(dirname "$0")/launcher.sh"
kind=${1---help}
shift || true
[[ $kind == -h || $kind == --help ]] && help
[[ $kind == gpu || $kind == tpu ]] || usage "give gpu or tpu, not $kind."
name=vit shared='?' nodes=1
options 'name shared nodes' "$@"
need sky "pip install 'skypilot[gcp]'"
check_train
[[ $kind == gpu || $nodes == 1 ]] || die "--nodes is for gpu; a larger TPU is another accelerator" \
  "in launch/skypilot/tpu.yaml."

words=("--name=$name" "--num-nodes=$nodes" "--env=TRAIN=$(quoted "${train[@]}")"
  "--env=SHARED=$shared" --yes)
[[ $dry_run == no ]] || cat "$root/launch/skypilot/$kind.yaml"
cd "$root"
run sky jobs launch "launch/skypilot/$kind.yaml" "${words[@]}"
