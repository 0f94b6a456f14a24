#!/bin/bash
# seer_jax on a Cloud TPU slice without Kubernetes: makes the slice, installs,
# runs, and starts again after a preemption until the run is done.
#
#   NAME=seer ZONE=us-east5-a TYPE=v5p-128 VERSION=v2-alpha-tpuv5 \
#     launch/cloud_tpu.sh --config=configs/seer_rg32.py:v5p \
#     --config.data.train.path=DIR --workdir=DIR
#
# Workdir and data lie on a file system that all hosts mount (Filestore, or a
# bucket through gcsfuse). Spot slices cost a fraction, and are what exit status
# 75 and exact resumption are for.
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${VERSION:?}"
repository=${REPOSITORY:-$(git -C "$(dirname "$0")" remote get-url origin)}

make() {
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --spot \
    --accelerator-type="$TYPE" --version="$VERSION"
}
# Again before each start: a slice may be new, or was left half installed. The
# images of TPUs have an older Python than JAX asks for; uv brings its own.
install() {
  everywhere "set -e
    [ -d seer_jax ] || git clone '$repository' seer_jax
    cd seer_jax
    [ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
    [ -d .venv ] || ~/.local/bin/uv venv --python 3.12 .venv
    ~/.local/bin/uv pip install -q --python .venv/bin/python -e '.[tpu]'"
}
everywhere() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
    --command="$1"
}
state() {
  gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" \
    --format='value(state)' 2>/dev/null || echo NONE
}

# A command in front of the options, such as embed, is run instead of train.
program=seer_jax.main
case "${1-}" in [a-z]*) program=seer_jax ;; esac

while true; do
  case $(state) in
    READY) ;;
    NONE) make || sleep 300; continue ;; # No capacity: ask again.
    PREEMPTED | TERMINATED | STOPPED)
      # Only deleting it makes the name free.
      gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet || sleep 60
      continue
      ;;
    *) sleep 30; continue ;; # On its way to one of these.
  esac
  install || { sleep 60; continue; }
  status=0
  # The hosts of a slice find each other; the same command on each.
  everywhere "cd seer_jax && .venv/bin/python -m $program $(printf '%q ' "$@")" ||
    status=$?
  case $status in
    0) echo "done; the slice is still there: delete $NAME" && exit 0 ;;
    2) echo "a mistake in the command, see above" >&2 && exit 2 ;;
    *) sleep 30 ;; # Preempted, stopped by a signal, or failed: resume.
  esac
done
