"""Start Python programs without their cold start: a server has imported torch, DeepSpeed and cmbert, and forks.

`Popen` is subprocess.Popen, but for commands that start this Python on a module, a file or a segment of code: those run
in a process that a server forks. It is a process like any other: own pid, signals and exit code, a child of whoever
started it, with the environment, folder and files it was given. What a launcher starts in turn, as torchrun its ranks,
is forked from a copy of the server that was made before the launcher's first line: never from a process that has
computed. tests/integration/test_forking.py proves that a training started so is, bit for bit, one that Python started.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).parents[1]
THREADS = "1"  # what OMP_NUM_THREADS must be: OpenMP reads it once, when torch is imported
PRELOADED = (  # all that a training imports in the end, much of it late
    "torch.distributed.run",
    "torch._dynamo",  # by ZeRO 3, and by compilation
    "deepspeed",
    "deepspeed.ops.op_builder.all_ops",
    "cmbert.cli",
    "cmbert.train.loop",
    "scipy.linalg",  # by numba
)
LAUNCHERS = (  # programs that start others of ours
    "torch.distributed.run",
    "ablate",
    "demo.py",
    "rehearsal.py",
    "adapt.py",
)
MOST_BYTES = 1 << 18  # of a request
SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER


class Request(NamedTuple):
    """What a forked process becomes."""

    words: list[str]
    """The command after Python's own name."""
    environment: dict[str, str]
    folder: str
    is_session: bool
    """Whether it leads a session of its own."""
    hears_interrupts: bool
    """Whether who starts it does: a process that ignores SIGINT has children that do."""


class Popen(subprocess.Popen):
    """subprocess.Popen whose Python programs are forked, where `is_forked` says so."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *more: Any) -> None:
        pass_fds, cwd, env, pipes, is_session = more[1], more[2], more[3], more[7:13], more[-2]
        environment = dict(os.environ if env is None else env)
        if preexec_fn is not None or pass_fds or not is_forked(args, environment):
            super()._execute_child(args, executable, preexec_fn, *more)
            return
        files = [own if pipe == -1 else pipe for own, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        words = [os.fspath(word) for word in args[1:]]
        hears = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
        request = Request(words, environment, os.fspath(cwd or os.getcwd()), is_session, hears)
        self.pid = Server.get().fork(request, files)
        self._child_created = True
        self._close_pipe_fds(*pipes)


def run(command: Sequence[str], *, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess:
    """Do what subprocess.run does with captured output as text. Raises TimeoutExpired once the process is killed."""
    with Popen(command, text=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def is_forked(command: Sequence[str] | str, environment: Mapping[str, str]) -> bool:
    """Return whether `Popen` forks a command: this Python, with one thread, on something to run, in our session."""
    if isinstance(command, str) or command[0] != sys.executable or environment.get("OMP_NUM_THREADS") != THREADS:
        return False
    words = [word for word in command[1:] if word != "-u"]
    is_program = words[0] in ("-m", "-c") or not words[0].startswith("-")
    return is_program and os.getpgrp() == Server.get().group


class Server:
    """The other end of a process that forks on demand. It ends with the process that holds this."""

    current: "Server | None" = None

    def __init__(self, link: socket.socket):
        self.link, self.group, self.lock = link, os.getpgrp(), threading.Lock()

    @classmethod
    def get(cls) -> "Server":
        """Return this process's own, started by the first call."""
        cls.current = cls.current or _start()
        return cls.current

    def fork(self, request: Request, files: Sequence[int]) -> int:
        """Return the pid of a new child of this process. files: its standard input, output and error."""
        with self.lock, _adopting():
            socket.send_fds(self.link, [json.dumps(request).encode()], files)
            answer = self.link.recv(MOST_BYTES)
        assert answer, "the server that forks has ended"
        return int(answer)


@contextlib.contextmanager
def _adopting() -> Any:
    """Become the parent of what loses its own: a process below us that the server's child leaves behind."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(SUBREAPER, 1, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        prctl(SUBREAPER, 0, 0, 0, 0)


def _start() -> Server:
    """Start a Python that imports all; it is ready when it answers the first request."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.Popen(
        [sys.executable, "-c", f"from tests.forking import main; main({theirs.fileno()})"],
        cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    theirs.close()
    return Server(ours)


def _serve(link: socket.socket) -> Request:
    """Fork for every request until the other end is closed. Returns in the forked processes only."""
    while True:
        message, files, _, _ = socket.recv_fds(link, MOST_BYTES, 3)
        if not message:
            os._exit(0)
        answer, tell = os.pipe()
        between = os.fork()
        if between == 0:  # it ends at once, so that its child is adopted by who has asked
            parent, child = os.getpid(), os.fork()
            if child == 0:
                while os.getppid() == parent:
                    time.sleep(0.0005)
                for descriptor in (link.detach(), answer, tell):
                    os.close(descriptor)
                for number, descriptor in enumerate(files):
                    os.dup2(descriptor, number)
                for descriptor in set(files) - {0, 1, 2}:
                    os.close(descriptor)
                return Request(*json.loads(message))
            os.write(tell, str(child).encode())
            os._exit(0)
        for descriptor in (tell, *files):
            os.close(descriptor)
        os.waitpid(between, 0)
        link.send(os.read(answer, 100))
        os.close(answer)


def _run(request: Request) -> None:
    """Run the program as Python would that is started on it."""
    import numpy
    import torch

    if request.is_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    words = [word for word in request.words if word != "-u"]
    if len(words) < len(request.words):
        sys.stdout.reconfigure(write_through=True)
    sys.path[0] = {"-m": request.folder, "-c": ""}.get(words[0], str(Path(words[0]).parent))
    torch.seed()  # what no seed was given for differs from process to process
    numpy.random.seed()
    match words:
        case ["-m", module, *arguments]:
            sys.argv = [module, *arguments]
            warnings.filterwarnings("ignore", ".* found in sys.modules after import of package", RuntimeWarning)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *arguments]:
            sys.argv = ["-c", *arguments]
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
        case [script, *arguments]:
            sys.argv = [script, *arguments]
            runpy.run_path(script, run_name="__main__")


def _keep_a_copy() -> Request | None:
    """Make a copy of this process the server of what it starts. Returns the request in what that forks, else None."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        return _serve(theirs)
    theirs.close()
    Server.current = Server(ours)
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler  # loaded long ago

    subprocess.Popen = subprocess_handler.Popen = Popen  # type: ignore[misc]
    return None


def _is_launcher(words: Sequence[str]) -> bool:
    return "--processes" in words or any(Path(word).name in LAUNCHERS for word in words[:3])


def main(descriptor: int) -> None:
    """Import everything, serve, and be the program in each forked process."""
    from numba.core.registry import cpu_target

    for module in PRELOADED:
        importlib.import_module(module)
    cpu_target.target_context.refresh()  # numba's tables, which the first kernel from its cache would fill
    gc.collect()
    gc.freeze()  # or a collection would touch, and so copy, every page of every process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the programs
    request = _serve(socket.socket(fileno=descriptor))
    while _is_launcher(request.words) and (below := _keep_a_copy()):
        request = below
    signal.signal(signal.SIGINT, signal.default_int_handler if request.hears_interrupts else signal.SIG_IGN)
    try:
        _run(request)
    except SystemExit as end:
        _leave(end.code)
    _leave(0)


def _leave(code: object) -> NoReturn:
    """End as Python does, but for taking its hundred thousand objects apart, which takes a second and more."""
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
