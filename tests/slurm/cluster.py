"""A private Slurm of two nodes on this machine: own key, own ports, own state, nothing in /etc or /run.

It needs neither systemd nor cgroups, and it counts what the nodes do not have: CPUs and GPUs are numbers here.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.launching import children

NODES = ("n1", "n2")
START_SECONDS = 60
SLURMD_TIMEOUT_SECONDS = 10  # after so long without an answer a node counts as failed
KILL_WAIT_SECONDS = 5  # from TERM to KILL

CONFIGURATION = """ClusterName=cmbert
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait={kill_wait}
MinJobAge=3600
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout={slurmd_timeout}
UnkillableStepTimeout=60
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 Gres=gpu:2 RealMemory=4000\n"
GPUS = "NodeName=n[1-2] Name=gpu File={root}/gpu[0-1] Flags=nvidia_gpu_env\n"
PARTITIONS = """PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def wait_until(is_true: Callable[[], object], seconds: float, what: str) -> None:
    """Poll; raise TimeoutError that names what did not happen."""
    end = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie, which its parent has not reaped yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Cluster:
    """munged, slurmctld and two slurmd."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="cmbert-slurm-"))  # short: a socket's path has at most 107 bytes
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(self.root / "slurm.conf"),
        }

    def start(self) -> None:
        """Start everything. Raises TimeoutError if the nodes are not idle in START_SECONDS."""
        self._configure()
        self._start_munge()
        self._daemon(["slurmctld", "-f", self.environment["SLURM_CONF"], "-c"])
        for node in NODES:
            (self.root / f"spool.{node}").mkdir()
            self.start_node(node)
        wait_until(self.is_idle, START_SECONDS, f"both nodes idle; logs in {self.root}")

    def _configure(self) -> None:
        host, user = socket.gethostname().partition(".")[0], subprocess.check_output(["id", "-un"], text=True).strip()
        ports = _free_ports(1 + len(NODES))
        text = CONFIGURATION.format(
            host=host, port=ports[0], user=user, root=self.root, kill_wait=KILL_WAIT_SECONDS,
            slurmd_timeout=SLURMD_TIMEOUT_SECONDS,
        )  # fmt: skip
        text += "".join(NODE.format(name=n, host=host, port=p) for n, p in zip(NODES, ports[1:], strict=True))
        (self.root / "slurm.conf").write_text(text + PARTITIONS, encoding="utf-8")
        (self.root / "gres.conf").write_text(GPUS.format(root=self.root), encoding="utf-8")
        for number in range(2):
            (self.root / f"gpu{number}").touch()
        (self.root / "state").mkdir()

    def _start_munge(self) -> None:
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.root.chmod(0o755)  # munged refuses a folder that others may write
        self._daemon(["munged", "--num-threads=2", *(f"--{k}={self.root}/munge.{v}" for k, v in names.items())])

    def _daemon(self, command: list[str]) -> None:
        with open(self.root / "daemons.out", "ab") as output:
            subprocess.run(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True
            )

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._daemon(["slurmd", "-f", self.environment["SLURM_CONF"], "-N", node])

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd and all it had started, as a crash of the machine would."""
        victims = [self._pid(f"slurmd.{node}")]
        victims += [pid for pid, words in processes().items()
                    if words[0].startswith("slurmstepd") and self._node_of(pid) == node]  # fmt: skip
        for victim in victims:
            for pid in [victim, *descendants(victim)]:
                _kill(pid, signal.SIGKILL)

    def _node_of(self, pid: int) -> str:
        try:
            opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            return ""
        return next((node for node in NODES if str(self.root / f"slurmd.{node}.log") in opened), "")

    def _pid(self, name: str) -> int:
        return int((self.root / f"{name}.pid").read_text(encoding="utf-8"))

    def call(self, *command: str, directory: Path | None = None, code: int | None = 0) -> str:
        """Run a Slurm command; return its output. code: what it must end with, None = anything."""
        done = subprocess.run(
            command, env=self.environment, cwd=directory, capture_output=True, text=True, check=False, timeout=60
        )
        assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr if code else done.stdout

    def is_idle(self) -> bool:
        return self.call("sinfo", "-h", "-p", "main", "-N", "-o", "%t").split() == ["idle"] * len(NODES)

    def show(self, job: str) -> dict[str, str]:
        """Return what slurmctld knows about a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", job)))

    def state(self, job: str) -> str:
        return self.show(job)["JobState"]

    def stop(self) -> None:
        """End all jobs and daemons and remove every file."""
        self.call("scancel", "--user", str(os.getuid()), code=None)
        try:
            wait_until(lambda: not self.call("squeue", "-h", code=None), 30, "an empty queue")
        finally:
            for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munge"):
                if (self.root / f"{name}.pid").is_file():
                    pid = self._pid(name)
                    _kill(pid, signal.SIGTERM)
                    wait_until(lambda pid=pid: not is_alive(pid), 30, f"the end of {name}")
            shutil.rmtree(self.root)


def processes() -> dict[int, list[str]]:
    """Return the command line of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes below one."""
    return [below for child in children(pid) for below in (child, *descendants(child))]


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
