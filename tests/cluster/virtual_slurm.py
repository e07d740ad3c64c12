"""A real Slurm of virtual nodes on this machine: `with running(folder) as environment`, or by hand

    python tests/cluster/virtual_slurm.py FOLDER     # prints what to export; Ctrl-C ends it

Needs root and Debian's slurm-wlm, slurmctld, slurmd and munge. Nodes have two null devices each in place of GPUs. There
is no accounting, and no cgroup: what a job may use is counted, not enforced, but for its memory.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NODES = 4
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol")
CONFIGURATION = """\
ClusterName=dev
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={run}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldPort={port}
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.%n.pid
SlurmdSpoolDir={run}/spool/%n
StateSaveLocation={run}/state
SlurmctldLogFile={run}/slurmctld.log
SlurmdLogFile={run}/slurmd.%n.log
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
KillWait=20
MinJobAge=300
Waittime=0
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerNode=1500
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,NoShared
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}]
PartitionName=DEFAULT Nodes=n[1-{nodes}] MaxTime=INFINITE State=UP
PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """What this machine lacks for it, empty if nothing."""
    if os.geteuid():
        return "Slurm on one machine is started by root only"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path()) is None]
    return f"no Slurm: {', '.join(absent)} not installed (slurm-wlm, slurmctld, slurmd, munge)" if absent else ""


def path() -> str:
    """Where Debian puts daemons as well."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


@contextlib.contextmanager
def own_ports() -> Iterator[int]:
    """The first of NODES + 1 ports in a row that are no other Slurm's: whoever holds the port before them has them all.

    To probe them is not enough. Between a probe and the daemons that listen there another Slurm may choose the same
    ones; then nodes of the one report to the controller of the other, whose key they do not have.
    """
    for held in range(20_000, 32_000, NODES + 2):
        with contextlib.ExitStack() as guard:
            try:
                guard.enter_context(socket.socket()).bind(("127.0.0.1", held))
                with contextlib.ExitStack() as probes:
                    for port in range(held + 1, held + NODES + 2):
                        probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            yield held + 1
            return
    raise RuntimeError("no ports are free")


@contextlib.contextmanager
def running(run: Path, *, patience: float = 120) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's clients find it; at the end jobs are cancelled and daemons stopped."""
    with own_ports() as first, _running(run, first, patience) as environment:
        yield environment


@contextlib.contextmanager
def _running(run: Path, first: int, patience: float) -> Iterator[dict[str, str]]:
    for name in ("state", "spool", "dev", *(f"spool/n{node}" for node in range(1, NODES + 1))):
        (run / name).mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().partition(".")[0]
    facts = {"run": run, "host": host, "nodes": NODES, "port": first, "first": first + 1, "last": first + NODES}
    (run / "slurm.conf").write_text(CONFIGURATION.format(**facts))
    (run / "cgroup.conf").write_text("CgroupAutomount=no\nConstrainCores=no\n")
    (run / "gres.conf").write_text(f"NodeName=n[1-{NODES}] Name=gpu File={run}/dev/nvidia[0-1]\n")
    for number in (0, 1):
        device = run / "dev" / f"nvidia{number}"
        if not device.exists():
            os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
    environment = os.environ | {"SLURM_CONF": str(run / "slurm.conf"), "PATH": path()}
    key = run / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    run.chmod(0o755)
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        log = (run / f"{words[0]}.out").open("ab")
        daemons.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True))

    # munged insists that nobody else may write where its files lie; --force lets it run as root.
    munge = ["--key-file", str(key), "--socket", f"{run}/munge.socket", "--pid-file", f"{run}/munged.pid"]
    munge += ["--log-file", f"{run}/munged.log", "--seed-file", f"{run}/munged.seed"]
    try:
        start("munged", "--foreground", "--force", *munge)
        _wait(lambda: (run / "munge.socket").exists(), patience, "munged makes no socket", run)
        start("slurmctld", "-D", "-c")
        for node in range(1, NODES + 1):
            start("slurmd", "-D", "-N", f"n{node}")
        _wait(lambda: _idle(environment) == NODES, patience, "not all nodes come up", run)
        yield environment
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["scancel", "-u", "root"], env=environment, timeout=20, capture_output=True)
            _wait(lambda: not _jobs(environment), 40, "jobs do not end", run)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(daemons):
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
        _end_what_is_left(run)


def _end_what_is_left(run: Path) -> None:
    """Steps on a node that was said to have failed stay behind, and what they had started."""
    mark = f"SLURM_CONF={run / 'slurm.conf'}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0") and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)


def _wait(holds: object, patience: float, words: str, run: Path) -> None:
    end = time.monotonic() + patience
    while not holds():
        if time.monotonic() > end:
            logs = "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(run.glob("*.log")))
            raise TimeoutError(f"{words} within {patience:g} s\n{logs}")
        time.sleep(0.2)


def _idle(environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-p", "low", "-o", "%t"], env=environment, capture_output=True, text=True, timeout=20
    )
    return done.stdout.split().count("idle")


def _jobs(environment: dict[str, str]) -> str:
    return subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True, timeout=20).stdout


if __name__ == "__main__":
    if words := missing():
        raise SystemExit(words)
    with running(Path(sys.argv[1]).absolute()) as found:
        print(f"export SLURM_CONF={found['SLURM_CONF']} PATH={found['PATH']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
