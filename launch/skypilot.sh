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
# sky jobs cancel. Machines that are taken away, and runs that were asked to stop, lost a process or
# found no partner (42, 134, 137, 75), start the task again, six times at most without a further step
# saved; an error does not.

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
