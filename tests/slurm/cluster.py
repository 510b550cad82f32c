"""A private Slurm of two nodes on this machine: own key, own ports, own state, nothing in /etc or /run.

It needs neither systemd nor cgroups, and it counts what the nodes do not have: CPUs and GPUs are numbers here. Several
may run at once, one for each process that tests.

Slurm's own clocks (22.05): slurmctld looks at time limits every 30 s and sends the signal of --signal=S@T as soon as
T + 30 s or less are left; this is compiled in. All others are set here, so that a sound node is never given up and what
waits for the scheduler waits a second.
"""

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cmbert.cluster.distributed import NUM_PORTS
from tests.processes import descendants, is_alive
from tests.slurm.configuration import CONFIGURATION, GPUS, NODE, PARTITIONS, SITES, SITES_GPUS

NODES = ("n1", "n2")
WAIT_SECONDS = 180  # most that anything waited for may take on a loaded machine
KILL_WAIT_SECONDS = 10  # from TERM to KILL: two steps and a save of the tiny model fit in

MAX_CLUSTERS = 12  # at once on one machine
DAEMON_PORTS, PORTS_EACH = 10_000, 10  # below those of the rendezvous, and of what Linux gives to who asks for any port
JOBS_EACH = NUM_PORTS // MAX_CLUSTERS  # a job's number makes its rendezvous port: no two clusters share one


def wait_until(is_true: Callable[[], object], what: str) -> None:
    """Poll; raise TimeoutError that names what did not happen."""
    end = time.monotonic() + WAIT_SECONDS
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {WAIT_SECONDS} s: {what}")
        time.sleep(0.1)


class Cluster:
    """munged, slurmctld and two slurmd."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="cmbert-slurm-"))  # short: a socket's path has at most 107 bytes
        self.number, self.claim = _claim()
        self.num_crashes = 0
        """Of slurmctld; its 22.05 writes to address 0 now and then when a node is lost while a job begins."""
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(self.root / "slurm.conf"),
        }

    def start(self) -> None:
        """Start everything. Raises TimeoutError if the nodes do not become idle."""
        self._configure()
        self._start_munge()
        self._daemon(["slurmctld", "-f", self.environment["SLURM_CONF"], "-c"])
        for node in NODES:
            (self.root / f"spool.{node}").mkdir()
            self.start_node(node)
        wait_until(self.is_idle, f"both nodes idle; logs in {self.root}")

    def _configure(self) -> None:
        host, user = socket.gethostname().partition(".")[0], subprocess.check_output(["id", "-un"], text=True).strip()
        ports = _ports(self.number)[1:]
        text = CONFIGURATION.format(
            host=host, port=ports[0], user=user, root=self.root, kill_wait=KILL_WAIT_SECONDS,
            first_job=1 + self.number * JOBS_EACH,
        )  # fmt: skip
        text += "".join(NODE.format(name=n, host=host, port=p) for n, p in zip(NODES, ports[1:], strict=True))
        (self.root / "slurm.conf").write_text(text + PARTITIONS + SITES, encoding="utf-8")
        (self.root / "gres.conf").write_text(GPUS.format(root=self.root) + SITES_GPUS, encoding="utf-8")
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

    def lose_node(self, node: str) -> None:
        """Kill a node's slurmd and all it had started, as a crash of the machine would, and tell slurmctld."""
        _kill_all([self._pid(f"slurmd.{node}"), *self._step_daemons(node)], f"the end of {node}")
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def _step_daemons(self, node: str) -> list[int]:
        """Return the slurmstepd of a node: one for each step of its jobs."""
        log = self.root / f"slurmd.{node}.log"
        return [pid for pid, words in processes().items() if words[0].startswith("slurmstepd") and _has_open(pid, log)]

    def _pid(self, name: str) -> int:
        return int((self.root / f"{name}.pid").read_text(encoding="utf-8"))

    def call(self, *command: str, directory: Path | None = None, code: int | None = 0) -> str:
        """Run a Slurm command; return its output, and stderr unless `code` is 0. code: how it ends, None = anyhow."""
        run = partial(
            subprocess.run, command, env=self.environment, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False, timeout=WAIT_SECONDS,
        )  # fmt: skip
        done = run()
        if "Unable to contact slurm controller" in done.stderr and not is_alive(self._pid("slurmctld")):
            self.num_crashes += 1
            print(f"slurmctld has crashed by itself: started again; logs in {self.root}", file=sys.stderr, flush=True)
            self._daemon(["slurmctld", "-f", self.environment["SLURM_CONF"]])
            wait_until(lambda: not run().stderr.startswith("slurm_load"), "slurmctld's answer")
            done = run()
        assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def is_idle(self) -> bool:
        return self.call("sinfo", "-h", "-p", "main", "-N", "-o", "%t").split() == ["idle"] * len(NODES)

    def has_said_all(self) -> bool:
        """Whether no message of slurmctld's is on its way to a node.

        It tries for seconds to tell a lost node to end a job, also when the node is back and the job's next life is on
        it, which then ends. Slurm itself begins that life two minutes later.
        """
        return re.search(r"^Agent count: +0$", self.call("sdiag"), re.MULTILINE) is not None

    def show(self, job: str) -> dict[str, str]:
        """Return what slurmctld knows about a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", job)))

    def state(self, job: str) -> str:
        return self.show(job)["JobState"]

    def revive(self) -> None:
        """Start the nodes again whose slurmd has died, as machines that have been switched on anew.

        A step that a returning slurmd still had made slurmctld 22.05 forget the newer life's step of that number, which
        srun then could not end: "job_step_signal: JobId=1 StepId=1 not found".
        """
        for node in NODES:
            if not is_alive(self._pid(f"slurmd.{node}")):
                _kill_all(self._step_daemons(node), f"the end of {node}'s steps")
                self.start_node(node)

    def clear(self) -> None:
        """End all jobs and have both nodes again, whatever a test has left."""
        self.call("scancel", "--user", str(os.getuid()), code=None)
        self.revive()
        wait_until(lambda: not self.call("squeue", "-h") and self.is_idle(), f"an empty queue; logs in {self.root}")

    def stop(self) -> None:
        """End all daemons and remove every file; no job is left."""
        for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munge"):
            if (self.root / f"{name}.pid").is_file():
                pid = self._pid(name)
                _kill(pid, signal.SIGTERM)
                wait_until(lambda pid=pid: not is_alive(pid), f"the end of {name}")
        wait_until(lambda: not any(map(self._step_daemons, NODES)), "the end of all steps")
        shutil.rmtree(self.root)
        self.claim.close()


def processes() -> dict[int, list[str]]:
    """Return the command line of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def works_in(pid: int, directory: Path) -> bool:
    """Return whether a process is alive in a folder."""
    return _target(Path(f"/proc/{pid}/cwd")) == str(directory)


def _has_open(pid: int, file: Path) -> bool:
    try:
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, PermissionError):
        return False
    return str(file) in map(_target, opened)


def _target(link: Path) -> str:
    """Where a link of /proc leads; nowhere if the process has ended just now or is another user's."""
    try:
        return os.readlink(link)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _kill_all(daemons: list[int], what: str) -> None:
    """Kill processes and all that they have started."""
    for daemon in daemons:
        for pid in [daemon, *(below.pid for below in descendants(daemon))]:
            _kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, daemons)), what)


def _kill(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _ports(number: int) -> range:
    """The ports of a cluster: the first is its claim, the others are its daemons'."""
    first = DAEMON_PORTS + number * PORTS_EACH
    return range(first, first + 2 + len(NODES))


def _claim() -> tuple[int, socket.socket]:
    """Return the first number that no other cluster here has, and what keeps it ours as long as it is open."""
    for number in range(MAX_CLUSTERS):
        claim = socket.socket()
        if _binds(claim, _ports(number)[0]) and all(map(_is_free, _ports(number)[1:])):
            return number, claim
        claim.close()
    raise RuntimeError(f"no {len(_ports(0))} free ports for another Slurm from {DAEMON_PORTS} on")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an ended daemon's connections do no harm
        return _binds(probe, port)


def _binds(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("", port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
