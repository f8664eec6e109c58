#!/usr/bin/env bash
# One-node SLURM for tests, on any Debian: as root, without systemd, everything on loopback.
#
#   tests/slurm/slurm-up.sh      starts it: squeue only, without accounting, two fake GPUs
#   tests/slurm/slurm-down.sh    ends what this started
#
# Exit codes: 0 it runs; 3 it cannot run on this machine (no root, packages missing and not to be had, a SLURM of the
# machine's own); 1 it should have come up and did not.
#
# Packages are installed only where they are missing. A second call starts only what does not run. State, logs, pid
# files and the configuration lie in $SLURM_TEST_HOME; nothing outside it is written but links to the configuration in
# /etc/slurm (a variable would not do: Snakemake's executor drops SLURM_CONF inside jobs), munge's key and socket
# folder, and a line in the hosts file if the machine cannot resolve its own name.
# A machine that has a SLURM of its own is left alone.
set -euo pipefail

HOME_DIR=${SLURM_TEST_HOME:-${XDG_RUNTIME_DIR:-/run}/smmil-slurm}
GPUS=${SLURM_FAKE_GPUS:-2}
NODE=$(hostname -s)

say() { echo "slurm-up: $*" >&2; }
die() { say "$*"; exit 1; }
cannot() { say "$*"; exit 3; }
runs() { [ -s "$1" ] && kill -0 "$(<"$1")" 2>/dev/null; }

# until SECONDS WHAT COMMAND...: polls the command until it succeeds
until_ok() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  while ! "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "$what did not come up; its log is in $HOME_DIR/log"
    sleep 0.1
  done
}

install_packages() {
  local wanted=(slurmctld slurmd slurm-client munge) missing=()
  for package in "${wanted[@]}"; do
    dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  command -v apt-get >/dev/null || cannot "missing ${missing[*]}, and there is no apt-get to install them"
  say "installing ${missing[*]}"
  # a policy of 101 keeps the packages from starting their daemons; it is taken away again unless it was there before
  local policy=/usr/sbin/policy-rc.d made=0
  [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"; made=1; }
  local apt=(apt-get -qq -o DPkg::Lock::Timeout=300) rc=0
  export DEBIAN_FRONTEND=noninteractive
  { "${apt[@]}" update && "${apt[@]}" install --yes --no-install-recommends "${missing[@]}"; } \
    >"$HOME_DIR/log/apt.log" 2>&1 || rc=$?
  [ "$made" = 0 ] || rm -f "$policy"
  [ "$rc" = 0 ] || cannot "could not install ${missing[*]}; see $HOME_DIR/log/apt.log"
}

# SLURM asks for the GPU files to be devices: without that CUDA_VISIBLE_DEVICES is never set
make_gpus() {
  local i file
  : >"$HOME_DIR/gres.conf"
  for ((i = 0; i < GPUS; i++)); do
    file=$HOME_DIR/dev/gpu$i
    [ -c "$file" ] || { rm -f "$file"; mknod "$file" c 1 3; }
    echo "NodeName=$NODE Name=gpu Type=fake File=$file" >>"$HOME_DIR/gres.conf"
  done
}

write_config() {
  local gres=
  [ "$GPUS" = 0 ] || gres="Gres=gpu:fake:$GPUS"
  # Memory is watched by polling (no cgroups), every second, so that a job too large dies soon. The node says that it
  # has 64 GB whatever it has: small jobs with the paper's requests can then be scheduled on a small machine.
  cat >"$HOME_DIR/slurm.conf" <<CONF
ClusterName=smmil
SlurmctldHost=$NODE(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
# finished jobs stay visible to squeue for a day
MinJobAge=86400
KillWait=10
JobRequeue=1
ReturnToService=2
SlurmdTimeout=300
SlurmdParameters=config_overrides
InactiveLimit=0
StateSaveLocation=$HOME_DIR/state
SlurmdSpoolDir=$HOME_DIR/spool
SlurmctldPidFile=$HOME_DIR/run/slurmctld.pid
SlurmdPidFile=$HOME_DIR/run/slurmd.pid
SlurmctldLogFile=$HOME_DIR/log/slurmctld.log
SlurmdLogFile=$HOME_DIR/log/slurmd.log
GresTypes=gpu
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=$(env -u OMP_NUM_THREADS nproc) RealMemory=65536 $gres State=UNKNOWN
PartitionName=main Nodes=$NODE Default=YES MaxTime=1-00:00:00 DefMemPerCPU=500 State=UP
CONF
}

start_munge() {
  [ -s /etc/munge/munge.key ] || { mkdir -p /etc/munge; (umask 077; head -c 1024 /dev/urandom >/etc/munge/munge.key); }
  mkdir -p /run/munge /var/log/munge /var/lib/munge
  chown munge: /etc/munge/munge.key /run/munge /var/log/munge /var/lib/munge
  chmod 400 /etc/munge/munge.key
  chmod 755 /run/munge
  if ! munge -n >/dev/null 2>&1; then
    setpriv --reuid=munge --regid=munge --clear-groups munged --force
    cp /run/munge/munged.pid "$HOME_DIR/run/munged.pid" # ours to end
  fi
  until_ok 20 munged munge -n
}

link_config() {
  local name
  mkdir -p /etc/slurm
  for name in slurm.conf gres.conf; do
    ln -sfn "$HOME_DIR/$name" "/etc/slurm/$name"
  done
}

ready() { sinfo --noheader --format %T | grep -Eqx 'idle|mixed|allocated'; }

[ "$(id -u)" = 0 ] || cannot "needs root, to start the daemons and to make device files"
conf=/etc/slurm/slurm.conf
if [ -e "$conf" ] && [ "$(readlink "$conf")" != "$HOME_DIR/slurm.conf" ]; then
  cannot "$conf is not of this script: the machine has a SLURM of its own, and it is left alone"
fi
unset SLURM_CONF
mkdir -p "$HOME_DIR"/{state,spool,log,run,dev}
install_packages
getent hosts "$NODE" >/dev/null || echo "127.0.0.1 $NODE" >>/etc/hosts
if ! runs "$HOME_DIR/run/slurmctld.pid"; then
  make_gpus
  write_config
fi
link_config
start_munge
runs "$HOME_DIR/run/slurmctld.pid" || slurmctld
until_ok 30 slurmctld scontrol ping
runs "$HOME_DIR/run/slurmd.pid" || slurmd -N "$NODE"
until_ok 60 "the node" ready
say "$(sinfo --noheader --format '%P %T, %c CPUs, %m MiB, %G'), ${SECONDS} s"
