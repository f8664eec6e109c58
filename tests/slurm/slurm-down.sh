#!/usr/bin/env bash
# Ends the daemons that slurm-up.sh started (by their pid files) and removes their state, so that the next start is new.
set -euo pipefail

HOME_DIR=${SLURM_TEST_HOME:-${XDG_RUNTIME_DIR:-/run}/smmil-slurm}
[ -d "$HOME_DIR" ] || exit 0
# jobs first: their step daemons would outlive the node daemon
if scontrol ping >/dev/null 2>&1; then
  scancel --user "$(id -un)" --signal=KILL --full 2>/dev/null || true
  scancel --user "$(id -un)" 2>/dev/null || true
  for _ in $(seq 50); do
    [ -n "$(squeue --noheader --states=RUNNING,COMPLETING 2>/dev/null)" ] || break
    sleep 0.2
  done
fi
for daemon in slurmd slurmctld munged; do
  file=$HOME_DIR/run/$daemon.pid
  [ -s "$file" ] || continue
  pid=$(<"$file")
  kill "$pid" 2>/dev/null || continue
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
done
for name in slurm.conf gres.conf; do
  [ "$(readlink "/etc/slurm/$name")" != "$HOME_DIR/$name" ] || rm -f "/etc/slurm/$name"
done
rm -rf "$HOME_DIR"
