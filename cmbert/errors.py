"""Errors a user can cause, and how a command line ends on them: one clear line, exit code 2, no traceback."""

import os
import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
EXIT_TRANSIENT = 74  # EX_IOERR of sysexits.h: what stood in the way may pass, run the same command again
EXIT_INTERRUPTED = 130  # the shell's convention for SIGINT: 128 + 2
EXIT_BROKEN_PIPE = 141  # likewise for SIGPIPE: 128 + 13
EXTRA_OF = {  # what is imported without a word of its own when it is missing -> the extra it comes with
    "sentence_transformers": "eval",
    "accelerate": "eval",
    "datasets": "eval",
    "onnx": "eval",
    "onnxruntime": "eval",
    "onnxscript": "eval",
    "datatrove": "data",
    "orjson": "data",
    "pyarrow": "data",
    "zstandard": "data",
    "snownlp": "data",
    "wandb": "wandb",
    "mpi4py": "mpi",
}

IN_A_CLONE = "the shipped recipes/ and ds_configs/ are in a clone of the project, an installed package has none"


class CmbertError(Exception):
    """Base of every error that is the user's to mend; its text names the file, the key and the remedy."""


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


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run `command` and return its exit code; a user's mistake becomes one line on stderr and exit code 2."""
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except CmbertError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_TRANSIENT if isinstance(error, TransientError) else EXIT_USER_ERROR
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_OF:
            raise
        print(f"{program}: error: {module} is not installed: pip install 'cmbert[{EXTRA_OF[module]}]'", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:  # the reader of our output has left (`| head`): nothing more to say
        forget_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: error: {where}{error.strerror}; mend that and run the same command again", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED


def forget_stdout() -> None:
    """Send what is still printed nowhere: nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
