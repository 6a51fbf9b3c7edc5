#!/usr/bin/env bash
# One machine of a job. tpu_vm.sh and compute_engine.sh copy it there and call it:
#
#   bash worker.sh install [gs://BUCKET | HOST:/EXPORT]   the package into ~/venv; mounts /shared
#   bash worker.sh start TRAIN-FLAGS...                   trains in the background
#   bash worker.sh status                                 none, running, stopped, lost or exit CODE
#   bash worker.sh hold                                   it is not restarted when it ends
#   bash worker.sh stop                                   asks it to save, and waits until it has
#   bash worker.sh logs                                   follows the log
#   bash worker.sh saved TRAIN-FLAGS...                   how many steps are saved
#
# restart.py decides after which exit codes it is restarted, and how often. With several machines, all of
# them get `hold` before the first gets `stop`. A run writes its log and exit code to ~/vit_jax_run.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=$HOME/vit_jax_run
vit_jax=$HOME/venv/bin/vit-jax
python=$HOME/venv/bin/python
[[ -x $python ]] || python=/usr/bin/python3

die() {
  echo "$(hostname): error: $*" >&2
  exit 1
}

supervised() {
  [[ -f $state/pid ]] &&
    [[ $(ps -o args= -p "$(<"$state/pid")") == *@('worker.sh supervise'|'restart.py run')* ]]
}

status() {
  if supervised; then
    echo running
  elif [[ -f $state/exit ]]; then
    local code
    code=$(<"$state/exit")
    if [[ -f $state/stop && " $("$python" "$here/restart.py" codes) " == *" $code "* ]]; then
      echo stopped
    else
      echo "exit $code"
    fi
  elif [[ -f $state/pid ]]; then
    echo lost # the machine went down before the end could be written
  else
    echo none
  fi
}

install() {
  [[ $(status) != running ]] || die "a run is in progress; stop it before installing."
  local new=$HOME/vit_jax.new
  if [[ -d $new ]]; then
    rm -rf "$HOME/vit_jax"
    mv "$new" "$HOME/vit_jax"
  fi
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  local uv=$HOME/.local/bin/uv
  "$uv" venv --quiet --allow-existing --python=3.12 "$HOME/venv"
  "$uv" pip install --quiet --python="$HOME/venv" \
    --constraint="$HOME/vit_jax/launch/requirements.txt" --editable="$HOME/vit_jax[tpu]"
  [[ -z ${1-} ]] || mount_shared "$1"
}

mount_shared() {
  mountpoint --quiet /shared && return
  sudo mkdir -p /shared
  case $1 in
    gs://*)
      command -v gcsfuse >/dev/null || install_gcsfuse
      local bucket=${1#gs://} # reads must see at once what another host wrote
      sudo gcsfuse -o allow_other --uid="$(id -u)" --gid="$(id -g)" \
        --implicit-dirs --metadata-cache-ttl-secs=0 "${bucket%/}" /shared
      ;;
    *:/*)
      sudo apt-get install --quiet --yes nfs-common
      sudo mount -t nfs "$1" /shared
      ;;
    *) die "--shared=$1 is neither gs://BUCKET nor HOST:/EXPORT." ;;
  esac
}

install_gcsfuse() {
  local keys=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
  curl --fail --silent --show-error "$packages/doc/apt-key.gpg" | sudo tee "$keys" >/dev/null
  echo "deb [signed-by=$keys] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update --quiet
  sudo apt-get install --quiet --yes gcsfuse
}

start() {
  [[ $(status) != running ]] || die "a run is in progress; stop it first."
  [[ -x $vit_jax ]] || die "$vit_jax does not exist; run the launcher's setup first."
  mkdir -p "$state"
  rm -f "$state/stop" "$state/exit" "$state/"*.json
  setsid nohup bash "$here/worker.sh" supervise "$@" >>"$state/log" 2>&1 </dev/null &
  echo $! >"$state/pid"
}

supervise() {
  local line code
  while read -r line; do
    [[ -z $line || $line == '#'* ]] || export "${line?}"
  done <"$here/env/tpu.env"
  cd "$here/.." # for --config=configs/...
  # A machine that goes down sends TERM to all its processes: the run saves, and this waits for it.
  # All machines are there: one that does not come within half an hour has ended with an error.
  exec "$python" "$here/restart.py" run --again --folder="$state" --waits=6 "$vit_jax" train "$@"
}

hold() {
  ! supervised || touch "$state/stop"
}

stop() {
  hold
  if supervised; then kill -TERM "$(<"$state/pid")" || true; fi
  while supervised; do sleep 0.2; done
  status
}

saved() {
  "$python" "$here/restart.py" saved "$@"
}

case ${1---help} in
  install | start | supervise | status | hold | stop | saved) "$@" ;;
  logs) tail -n 100 -F "$state/log" ;;
  -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
  *) die "worker.sh install, start, status, hold, stop, saved or logs, not $1." ;;
esac
