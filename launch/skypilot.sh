#!/usr/bin/env bash
# SkyPilot (pip install 'skypilot[gcp]'): finds a cloud with capacity, and moves when preempted.
#
#   launch/skypilot.sh gpu --name=vit --nodes=1 --shared=gs://BUCKET -- \
#       --config=configs/pretrain.py:B/16,imagenet21k --workdir=/shared/b16
#   launch/skypilot.sh tpu --name=vit --shared=gs://BUCKET -- --config=... --workdir=/shared/...
#
#   --shared=gs://BUCKET   mounted on /shared; S3 and other stores as SkyPilot names them
#   --dry-run              print the task and the command, run nothing
#
# The resources are in launch/skypilot/gpu.yaml and tpu.yaml. Logs and stop: sky jobs logs, sky jobs
# cancel. The task is restarted when its machines are preempted, or when it was asked to stop or another
# process died or did not join (42, 134, 137, 75): at most six times without a new saved step. After an
# error it is not.

source "$(dirname "$0")/launcher.sh"
action=${1---help}
shift || true
[[ $action == -h || $action == --help ]] && help
[[ $action == gpu || $action == tpu ]] || usage "give gpu or tpu, not $action."
name=vit shared='?' nodes=1
options 'name shared nodes' "$@"
need sky "pip install 'skypilot[gcp]'"
[[ $action == gpu || $nodes == 1 ]] || die "--nodes is for gpu; a larger TPU is another accelerator" \
  "in launch/skypilot/tpu.yaml."

words=("--name=$name" "--num-nodes=$nodes" "--env=TRAIN=$(quoted "${train[@]}")"
  "--env=SHARED=$shared" --yes)
[[ $dry_run == no ]] || cat "$root/launch/skypilot/$action.yaml"
cd "$root"
run sky jobs launch "launch/skypilot/$action.yaml" "${words[@]}"
