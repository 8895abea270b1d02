#!/usr/bin/env python3
"""A real Slurm on this machine alone: munged, slurmctld and some slurmd, on loopback, with GPUs that are null devices.

    python tests/slurm/cluster.py up [--folder FOLDER] [--nodes 2] [--install]
    python tests/slurm/cluster.py down [--folder FOLDER]
    python tests/slurm/cluster.py install

Needs root and Debian's packages slurm-wlm and munge, which only `install` and --install install. Everything lies in the
folder, apart from links in Slurm's own folder, made only where nothing stands in their way: Snakemake's Slurm jobs find
the configuration nowhere else. `down` ends what `up` started, by process id and start time, and removes the links.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ["munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue", "sinfo", "scontrol"]
PACKAGES = ["slurm-wlm", "munge"]
LINKS = Path("/etc/slurm")
POLICY = Path("/usr/sbin/policy-rc.d")
CPUS, MEMORY, GPUS = 16, 200_000, 2  # of each node; claimed, not enforced

CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=100000,bf_interval=2
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
GresTypes=gpu
ReturnToService=2
MinJobAge=1200
KillWait=5
SlurmdTimeout=15
InactiveLimit=0
JobRequeue=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""
NODE = (
    "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1"
    " CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory} Gres=gpu:fake:{gpus} State=UNKNOWN\n"
)
PARTITIONS = """\
PartitionName=gpu Nodes={nodes} Default=YES DefaultTime=60 MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE State=UP PriorityTier=10
"""


class ClusterError(RuntimeError):
    """The cluster can't be brought up; the message says why, in one sentence."""


def missing() -> str:
    """Why no cluster can be brought up here; empty where one can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not found; install Debian's packages {' and '.join(PACKAGES)}"
    links = [LINKS / name for name in ("slurm.conf", "gres.conf")]
    foreign = [link for link in links if os.path.lexists(link) and not abandoned(link)]
    return f"{foreign[0]} is there: this machine has a Slurm of its own, or `down` was not called" if foreign else ""


def abandoned(link: Path) -> bool:
    """Whether a link is that of a cluster of ours whose daemons have all ended without `down`."""
    if not link.is_symlink():
        return False
    record = link.readlink().parent / "started.json"
    entries = json.loads(record.read_text()).values() if record.exists() else []
    return all(started_at(entry["pid"]) != entry["started"] for entry in entries)


class Cluster:
    """The daemons and files of one cluster in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.configuration = self.folder / "slurm.conf"
        self.record = self.folder / "started.json"
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        self.environment = {**os.environ, "PATH": path, "SLURM_CONF": str(self.configuration)}

    def up(self, nodes: int = 2) -> None:
        """Start all daemons and wait until every node is idle; what was started is stopped again if that fails."""
        if self.record.exists():
            raise ClusterError(f"{self.folder}: a cluster was started here; call `down` first.")
        if reason := missing():
            raise ClusterError(f"{reason}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._configure([f"n{number}" for number in range(1, nodes + 1)])
            self._munge()
            self._link()
            self._start("slurmctld", "slurmctld", "-D", "-c", "-f", str(self.configuration))
            for number in range(1, nodes + 1):
                self.start_node(f"n{number}")
            self._wait("the nodes are not idle", lambda: self.states().count("idle") == nodes)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Cancel all jobs, end the daemons that `up` started, remove its links."""
        if self.record.exists():
            with contextlib.suppress(ClusterError, subprocess.SubprocessError):
                self._end_jobs()
            for name in reversed(list(self._started())):
                self.stop(name)
            self.record.unlink()
        for name in ("slurm.conf", "gres.conf", "cgroup.conf"):
            link = LINKS / name
            if link.is_symlink() and link.readlink() == self.folder / name:
                link.unlink()

    def call(self, *command: str) -> str:
        """Standard output of one of Slurm's commands; ClusterError where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def states(self) -> list[str]:
        """The state of each node; none while the controller does not answer."""
        with contextlib.suppress(ClusterError, subprocess.SubprocessError):
            return self.call("sinfo", "-h", "-N", "-p", "gpu", "-o", "%T").split()
        return []

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-N", node, "-f", str(self.configuration))

    def kill_node(self, node: str) -> None:
        """As if the machine lost its power: its daemon and all processes of its jobs get SIGKILL."""
        jobs = self.call("squeue", "-h", "-w", node, "-o", "%A").split()
        steps = [pid for pid, command in commands() if any(command.startswith(f"slurmstepd: [{job}.") for job in jobs)]
        trees = [[step, *descendants(step)] for step in steps]  # a job on several nodes has some on each
        pids = [pid for tree in trees if any(is_on(child, node) for child in tree) for pid in tree]
        self.stop(node, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a daemon if the process that was recorded for it still runs; SIGKILL after ten seconds."""
        entry = self._started().get(name)
        if entry is None or started_at(entry["pid"]) != entry["started"]:
            return
        os.kill(entry["pid"], number)
        try:
            self._wait(f"{name} does not end", lambda: started_at(entry["pid"]) != entry["started"], seconds=10)
        except ClusterError:
            os.kill(entry["pid"], signal.SIGKILL)

    def _end_jobs(self) -> None:
        """Cancel all jobs; what has not ended by itself after a while is killed with its node."""
        self.call("scancel", "--user", "root")
        try:
            self._wait("jobs do not end", lambda: not self.call("squeue", "-h"), seconds=15)
        except ClusterError:
            for node in self._started().keys() - {"munged", "slurmctld"}:
                self.kill_node(node)

    def _configure(self, nodes: list[str]) -> None:
        host = socket.gethostname().partition(".")[0]
        ports = free_ports(len(nodes) + 1)
        text = CONFIGURATION.format(host=host, port=ports[0], folder=self.folder)
        devices = ""
        (self.folder / "state").mkdir(exist_ok=True)
        for node, port in zip(nodes, ports[1:], strict=True):
            text += NODE.format(node=node, host=host, port=port, cpus=CPUS, memory=MEMORY, gpus=GPUS)
            for number in range(GPUS):  # Slurm takes a GPU for real only with a character device of its own
                device = self.folder / f"{node}-gpu{number}"
                if not device.exists():
                    os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
                devices += f"NodeName={node} Name=gpu Type=fake File={device}\n"
        self.configuration.write_text(text + PARTITIONS.format(nodes=",".join(nodes)))
        (self.folder / "gres.conf").write_text(devices)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n")

    def _munge(self) -> None:
        """munged with a key and a socket of its own."""
        key, at = self.folder / "munge.key", str(self.folder / "munge.sock")
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        files = {"key-file": key, "socket": at, "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "seed"}
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self._start("munged", "munged", "--foreground", "--force", *options)
        probe = ["munge", "-S", at, "-n"]
        self._wait("munged does not answer", lambda: not subprocess.run(probe, capture_output=True).returncode)

    def _link(self) -> None:
        LINKS.mkdir(parents=True, exist_ok=True)
        for name in ("slurm.conf", "gres.conf", "cgroup.conf"):
            if abandoned(LINKS / name):
                (LINKS / name).unlink()
            if not os.path.lexists(LINKS / name):
                (LINKS / name).symlink_to(self.folder / name)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        entry = {"pid": process.pid, "started": started_at(process.pid)}
        self.record.write_text(json.dumps({**self._started(), name: entry}))

    def _started(self) -> dict[str, dict[str, int]]:
        return json.loads(self.record.read_text()) if self.record.exists() else {}

    def _wait(self, problem: str, ready: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise ClusterError(f"{self.folder}: {problem} after {seconds:.0f} s; see the logs there.")
            time.sleep(0.1)


def started_at(pid: int) -> int | None:
    """The start time of a process in the kernel's ticks, which tells it from a later one with its id; None if it ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # our own child would stay as a zombie
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def commands() -> list[tuple[int, str]]:
    """Process ids and command lines of all processes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")))
    return found


def descendants(pid: int) -> list[int]:
    """Children of a process, their children, and so on."""
    with contextlib.suppress(OSError):
        lists = [task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children")]
        return [found for child in map(int, sum(lists, [])) for found in (child, *descendants(child))]
    return []


def is_on(pid: int, node: str) -> bool:
    """Whether a process was started by the slurmd of a node."""
    with contextlib.suppress(OSError):
        return f"SLURMD_NODENAME={node}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def install() -> None:
    """Debian's packages by apt-get, where they are missing; none of their daemons is started."""
    if "not found" not in missing():
        return
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with without_services():
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            try:
                subprocess.run(["apt-get", *command], env=quiet, check=True, stdout=subprocess.DEVNULL, timeout=300)
            except (OSError, subprocess.SubprocessError) as error:
                raise ClusterError(f"the packages {' and '.join(PACKAGES)} can't be installed: {error}.") from None


@contextlib.contextmanager
def without_services() -> Iterator[None]:
    """Packages that are installed meanwhile start nothing: the way Debian has for that (policy-rc.d)."""
    if os.path.lexists(POLICY):
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["up", "down", "install"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "vexkd-slurm")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--install", action="store_true", help="install Debian's packages where they are missing")
    options = parser.parse_args()
    cluster = Cluster(options.folder)
    if options.command == "down":
        cluster.down()
        return
    if options.install or options.command == "install":
        install()
    if options.command == "install":
        if reason := missing():
            raise ClusterError(f"{reason}.")
        return
    began = time.monotonic()
    cluster.up(options.nodes)
    print(
        f"{options.nodes} nodes idle after {time.monotonic() - began:.1f} s; export SLURM_CONF={cluster.configuration}"
    )


if __name__ == "__main__":
    try:
        main()
    except ClusterError as error:
        sys.exit(str(error))
