#!/bin/bash
# A real SLURM on this machine, and the shipped batch file in it: two processes
# train on digits, are requeued in the middle, and must end as an undisturbed
# pair does, bit for bit. A second job is stopped by its USR1 notice. A third is a
# Ray cluster, which packs images.
#
#   apt-get install -y --no-install-recommends slurm-wlm munge
#   launch/test_slurm.sh                # as root, in the repository; 10 minutes
#   launch/test_slurm.sh ray            # the last alone; needs .[cluster]
#
# STEPS=640 ARGS= for the whole digits run; the default is a small one.
set -euo pipefail
cd "$(dirname "$0")/.."

STEPS=${STEPS:-120}
ARGS=${ARGS-"--config.batch_size=16 --config.model.regnet=(2,16,16.0,2.0,16)
  --config.model.strides=(2,2) --config.model.head.hidden=(16,)
  --config.checkpoint.every=25 --config.eval.every=0 --config.log.every=2"}
base=$(mktemp -d /var/tmp/seer_slurm.XXXX)
chmod 755 "$base"
host=$(hostname -s)
export SLURM_CONF=$base/slurm.conf JAX_PLATFORMS=cpu
export XLA_FLAGS=--xla_force_host_platform_device_count=1

finish() {
  scancel --user=root 2>/dev/null || true
  for name in slurmd slurmctld munged; do
    [ -f "$base/$name.pid" ] && kill "$(cat "$base/$name.pid")" || true
  done
}
trap finish EXIT

dd if=/dev/urandom of="$base/munge.key" bs=1024 count=1 status=none
chmod 400 "$base/munge.key"
munged --force --key-file="$base/munge.key" --socket="$base/munge.socket" \
  --pid-file="$base/munged.pid" --log-file="$base/munged.log" \
  --seed-file="$base/munge.seed"
# Without systemd and cgroups, as in a container.
cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$base/munge.socket
CredType=cred/munge
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool
SlurmctldPidFile=$base/slurmctld.pid
SlurmdPidFile=$base/slurmd.pid
SlurmctldLogFile=$base/slurmctld.log
SlurmdLogFile=$base/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=120
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE
CONF
echo "CgroupPlugin=cgroup/v1" > "$base/cgroup.conf"
mkdir -p "$base/state" "$base/spool"
slurmctld
slurmd
for _ in $(seq 30); do
  sinfo --noheader --format=%t 2>/dev/null | grep -q idle && break
  sleep 1
done
sinfo

# submit NAME [sbatch options]: prints the job's number.
submit() {
  local name=$1
  shift
  # Word splitting is wanted in ARGS.
  sbatch --parsable --nodes=1 --ntasks-per-node=2 \
    --output="$base/$name.log" "$@" launch/slurm.sbatch \
    --config=configs/digits.py --workdir="$base/$name" \
    --config.steps="$STEPS" $ARGS
}
wait_for_step() {
  until grep -q "\"step\": $2," "$base/$1/metrics.jsonl" 2>/dev/null; do
    sleep 0.2
    state=$(squeue --noheader --job="$3" --format=%t || true)
    [ -n "$state" ] || { cat "$base/$1.log"; exit 1; }
  done
}
# Until nothing of the job is queued or runs. A requeued one would wait for two
# minutes; at once would be too early, since slurmd still refuses the credential
# of what it has just ended.
wait_for_end() {
  local state pending=0
  while true; do
    state=$(squeue --noheader --job="$1" --format=%t 2>/dev/null || true)
    [ -n "$state" ] || return 0
    if [ "$state" = PD ]; then pending=$((pending + 1)); else pending=0; fi
    if [ "$pending" -ge 10 ]; then
      scontrol update jobid="$1" starttime=now 2>/dev/null || true
    fi
    sleep 1
  done
}

training() {
  echo "undisturbed"
  job=$(submit plain)
  wait_for_end "$job"
  tail -n 3 "$base/plain.log"

  echo "requeued by scontrol in the middle"
  job=$(submit requeued)
  wait_for_step requeued $((STEPS / 4 / 2 * 2)) "$job"
  scontrol requeue "$job"
  wait_for_end "$job"
  tail -n 3 "$base/requeued.log"

  echo "USR1, as before the time limit"
  job=$(submit noticed)
  wait_for_step noticed $((STEPS / 4 / 2 * 2)) "$job"
  scancel --signal=USR1 "$job"
  wait_for_end "$job"
  tail -n 3 "$base/noticed.log"

  for name in requeued noticed; do
    grep "stopped by" "$base/$name.log" | sort | uniq -c
    grep "resumed at step" "$base/$name.log"
  done
  python launch/same_run.py "$base/plain" "$base/requeued" "$base/noticed"
}

ray() {
  echo "a Ray cluster in a job"
  python - "$base/images" <<PYTHON
import pathlib, sys
import cv2, numpy as np
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
for number in range(200):
  noise = np.random.default_rng(number).integers(0, 256, (96, 96, 3), np.uint8)
  cv2.imwrite(str(folder / f"{number:03}.jpg"), noise)
PYTHON
  job=$(sbatch --parsable --nodes=1 --output="$base/ray.log" \
    launch/ray.sbatch pack "$base/images" "$base/packed" --shard=8 --side=64)
  wait_for_end "$job"
  cat "$base/ray.log"
  python -m seer_jax pack "$base/images" "$base/alone" --shard=8 --side=64
  diff -r --exclude=lock "$base/packed" "$base/alone" && echo "same bytes"
}

for part in "${@:-training ray}"; do
  for each in $part; do "$each"; done
done
rm -rf "$base/state" "$base/spool"
