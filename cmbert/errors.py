"""Errors that are not our bugs, and how a command line ends on them: one clear line and a code, no traceback.

Exit code 2 is for what stays until somebody mends it; 74 for what may be gone when the same command runs again.
"""

import errno
import re
import sys
from collections.abc import Callable

from cmbert.standard_streams import guard_standard_streams, take_loss

EXIT_USER_ERROR = 2
EXIT_LEASE_LOST = 73  # sysexits.h's EX_CANTCREAT, "cannot create the output": it is another run's now. Never restart it
EXIT_TRANSIENT = 74  # sysexits.h's EX_IOERR: what stood in the way may pass, run the same command again
EXIT_INTERRUPTED = 130  # the shell's convention for SIGINT: 128 + 2
EXIT_BROKEN_PIPE = 141  # likewise for SIGPIPE: 128 + 13
EXTRA_OF = {  # what is imported without a word of its own when it is missing -> the extra it comes with
    "sentence_transformers": "eval",
    "accelerate": "eval",
    "datasets": "eval",
    "onnx": "eval",
    "onnxruntime": "eval",
    "onnxscript": "eval",
    "datatrove": "dev",
    "orjson": "data",
    "pyarrow": "data",
    "zstandard": "data",
    "snownlp": "data",
    "wandb": "wandb",
    "mpi4py": "mpi",
}
# What the system says of disks, networks and machines that are well again in a minute, or on another node. Everything
# else (missing, forbidden, full, read-only, a file descriptor too many) is as it was when the same command comes again.
PASSING_ERRNOS = frozenset(
    {
        errno.EIO,  # what a disk, a file server or Lustre after an eviction says; if the disk is broken, another node's
        errno.ESTALE,  # NFS: the file was renamed or the server restarted; the next open finds what is there now
        errno.ESHUTDOWN,  # Lustre: the client was evicted and reconnects
        errno.ENOTCONN,  # the same of Lustre and FUSE ("Transport endpoint is not connected")
        errno.EREMOTEIO,  # NFS and SCSI: the other side failed
        errno.ETIMEDOUT,  # a server does not answer
        errno.ETIME,  # the same of a driver's timer
        errno.ECONNRESET,  # a server, or a process of this run, ended
        errno.ECONNABORTED,
        errno.ECONNREFUSED,  # it is not yet up again
        errno.EPIPE,  # the process that read has ended; standard output never raises it
        errno.ENETDOWN,  # a cable, a switch, a card
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOLINK,  # the link was severed
        errno.EBUSY,  # something else holds it at this moment
        errno.EAGAIN,  # no process or lock to be had at this moment
        errno.EINTR,  # Python repeats a call that a signal broke off; Lustre says it of its own, too
        errno.ENOLCK,  # a server out of locks
        errno.ENOMEM,  # the machine is short of memory, often by other processes than ours
        errno.ENOBUFS,  # the same of the network
        errno.ENFILE,  # the machine is out of open files; our own limit is EMFILE, which does not pass
    }
)

HALF_NAME = re.compile("[\udc80-\udcff]")  # how Python spells the bytes of a file name that is not UTF-8
NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
IN_A_CLONE = "the shipped recipes/ are in a clone of the project only; `cmbert new NAME` writes one of your own"


class CmbertError(Exception):
    """Base of every error that is not our bug; its text names the file, the key and the remedy, in one line."""

    exit_code = EXIT_USER_ERROR

    def __init__(self, text: object = ""):
        """text: what in it ends lines, is a control character or no character is escaped: names come from outside."""
        super().__init__(NO_TEXT.sub(lambda found: ascii(found[0])[1:-1], str(text)))


class ConfigError(CmbertError):
    """A recipe, DeepSpeed file, tokenizer or command-line value is wrong."""


class InputError(CmbertError):
    """Text or evaluation input is missing, empty or malformed."""


class ShardError(CmbertError):
    """A shard set is missing, torn, or does not belong to what it is used with."""


class CheckpointError(CmbertError):
    """A run directory or checkpoint is missing, torn, or belongs to another recipe."""


class TransientError(CmbertError):
    """A disk, network, node or helper process failed in a way that the same command, run again, may not meet."""

    exit_code = EXIT_TRANSIENT


class LeaseLostError(CmbertError):
    """Another run owns the run directory now; this one must not write there any more."""

    exit_code = EXIT_LEASE_LOST


def may_pass(error: BaseException | None) -> bool:
    """Return whether an error may be gone when the same is tried again."""
    return isinstance(error, TransientError) or (isinstance(error, OSError) and error.errno in PASSING_ERRNOS)


def describe(error: OSError) -> str:
    """Return file, operation and what the system said of it."""
    said = error.strerror or str(error)
    if error.errno == errno.ENOENT and not error.filename:  # only the working directory has no name
        return "the working directory is not there any more; change to one that is"
    return f"{error.filename}: {said}" if error.filename else said


def first_line(error: BaseException) -> str:
    """Return what an error says, without the C++ frames and the like that follow."""
    return str(error).partition("\n")[0]


def advice(passing: bool) -> str:
    """Return what to do about an error of the system."""
    return "this may pass: run the same command again" if passing else "mend that and run the same command again"


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run `command` and return its exit code; what is not our bug becomes one line on stderr and a code of its own."""
    guard_standard_streams()
    try:
        return (command() or 0) or _said_all(program)
    except CmbertError as error:
        _say(program, str(error))
        return error.exit_code
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_OF:
            raise
        _say(program, f"{module} is not installed: pip install 'cmbert[{EXTRA_OF[module]}]'")
        return EXIT_USER_ERROR
    except UnicodeEncodeError as error:
        if not HALF_NAME.search(error.object):
            raise
        name = error.object.encode("utf-8", "backslashreplace").decode()
        _say(program, f"{name}: a name that is not UTF-8 cannot be used here; rename it")
        return EXIT_USER_ERROR
    except MemoryError as error:
        said = first_line(error) or "the system gives no more"
        _say(program, f"memory: {said}; ask for less, or run the same command again")
        return EXIT_TRANSIENT
    except OSError as error:
        if error.strerror is None:
            raise
        _say(program, f"{describe(error)}; {advice(may_pass(error))}")
        return EXIT_TRANSIENT if may_pass(error) else EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED


def _say(program: str, text: str) -> None:
    """Print an error as one line; names of files may have line ends in them."""
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    print(f"{program}: error: {text}", file=sys.stderr)


def _said_all(program: str) -> int:
    """Return the code of a command that has done its work: 0 if standard output took what it printed."""
    lost = take_loss()
    if lost is None:
        return 0
    if isinstance(lost, BrokenPipeError):  # the reader of our output has left (`| head`): nothing more to say
        return EXIT_BROKEN_PIPE
    _say(program, f"standard output: {describe(lost)}; {advice(may_pass(lost))}")
    return EXIT_TRANSIENT if may_pass(lost) else EXIT_USER_ERROR
