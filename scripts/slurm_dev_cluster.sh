#!/usr/bin/env bash
# A single-node SLURM cluster on this machine, for trying axzoo's slurm profile. Needs Debian and root. Do not run it on a
# machine that belongs to a real cluster.
#
#   slurm_dev_cluster.sh up       install slurm-wlm and munge if they are missing, start them, run a first job
#   slurm_dev_cluster.sh down     cancel all jobs, stop the daemons, remove the files that `up` wrote
#   slurm_dev_cluster.sh status   show node and queue
#
# FOLDER (default /var/tmp/axzoo-slurm) contains configuration, state and logs. CPUS is the number of CPUs of the node.
set -euo pipefail
FOLDER=${FOLDER:-/var/tmp/axzoo-slurm}
CPUS=${CPUS:-$(nproc)}
CONF=/etc/slurm/slurm.conf # the default path, because SLURM_CONF does not reach Snakemake's job steps

fail() {
    echo "slurm_dev_cluster: $*" >&2
    exit 1
}

until_true() { # SECONDS COMMAND...: retry the command until it succeeds or the time is over
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

runs() { [ -s "$FOLDER/$1.pid" ] && kill -0 "$(cat "$FOLDER/$1.pid")" 2>/dev/null; }
munge_answers() { munge -n </dev/null | unmunge; }
node_is_ready() { sinfo --noheader --format %T | grep -Eq '^(idle|mixed|allocated)$'; }
controller_answers() { scontrol ping | grep -q UP; }

install_packages() {
    command -v slurmctld slurmd sbatch munged >/dev/null && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || fail "apt-get update failed: is there a network?"
    apt-get install -y -qq --no-install-recommends slurm-wlm munge >"$FOLDER/apt.log" 2>&1 ||
        fail "apt-get cannot install slurm-wlm and munge, see $FOLDER/apt.log"
}

start_munge() {
    until_true 0 munge_answers && return
    install -d -o munge -g munge -m 0755 /run/munge # munged rejects folders that others can write to
    install -d -o munge -g munge -m 0700 /var/log/munge /var/lib/munge /etc/munge
    if [ ! -s /etc/munge/munge.key ]; then
        head -c 1024 /dev/urandom >/etc/munge/munge.key
        chown munge:munge /etc/munge/munge.key
        chmod 0400 /etc/munge/munge.key
    fi
    rm -f /run/munge/munge.socket.2
    runuser -u munge -- "$(command -v munged)"
    touch "$FOLDER/munge.ours"
    until_true 10 munge_answers || fail "munged does not answer, see /var/log/munge/munged.log"
}

write_configuration() {
    local host memory
    host=$(hostname -s)
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    if [ -e "$CONF" ] && [ ! -L "$CONF" ]; then
        fail "$CONF exists: this machine already belongs to a cluster"
    fi
    cat >"$FOLDER/slurm.conf" <<END
ClusterName=axzoo
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=UsePss,OverMemoryKill
JobCompType=jobcomp/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=10000
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MinJobAge=600
DefMemPerCPU=200
NodeName=$host NodeAddr=127.0.0.1 CPUs=$CPUS RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
    install -d /etc/slurm "$FOLDER/state" "$FOLDER/spool"
    ln -sfn "$FOLDER/slurm.conf" "$CONF"
}

up() {
    [ "$(id -u)" = 0 ] || fail "must be root, to install packages and start daemons"
    install -d -m 0755 "$FOLDER"
    install_packages
    start_munge
    runs slurmctld || ! pgrep -x 'slurmctld|slurmd' >/dev/null ||
        fail "SLURM is already running, but not from $FOLDER: stop it first"
    write_configuration
    runs slurmctld || slurmctld
    until_true 30 controller_answers || fail "slurmctld does not answer, see $FOLDER/slurmctld.log"
    runs slurmd || slurmd
    until_true 30 node_is_ready || fail "the node does not start, see $FOLDER/slurmd.log"
    srun --ntasks 1 --time 1 true || fail "the first job failed, see $FOLDER/slurmd.log"
    status
}

stop() { # NAME PIDFILE
    [ -s "$2" ] || return 0
    local pid
    pid=$(cat "$2")
    [ "$(ps -p "$pid" -o comm=)" = "$1" ] || return 0
    kill "$pid"
    until_true 10 bash -c "! kill -0 $pid" || kill -9 "$pid"
}

down() {
    if runs slurmctld; then
        scancel --user "$(id -un)" 2>/dev/null || true
        until_true 10 bash -c '[ -z "$(squeue --noheader)" ]' || true
    fi
    stop slurmd "$FOLDER/slurmd.pid"
    stop slurmctld "$FOLDER/slurmctld.pid"
    [ ! -e "$FOLDER/munge.ours" ] || stop munged /run/munge/munged.pid
    if [ "$(readlink "$CONF" 2>/dev/null)" = "$FOLDER/slurm.conf" ]; then
        rm -f "$CONF"
    fi
    rm -rf "$FOLDER"
}

status() {
    sinfo --noheader --format '%P %D node %T, %c cpus, %m MB'
    squeue
}

case "${1-}" in
    up | down | status) "$1" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
