"""When a rank cannot go on: whose fault it is, and what the others and the files get before it ends."""

import logging
import time

from torch.distributed import DistNetworkError

from cmbert.cluster.ending import PeerError, line_with_kind
from cmbert.cluster.listener import background
from cmbert.cluster.watchdog import Watchdog
from cmbert.errors import CmbertError, first_line
from cmbert.train.reporting import Reporter
from cmbert.train.run import Run

CLOSE_SECONDS = 3.0  # for metrics and ledger to be on disk; they are cut back to a checkpoint anyway
HEAR_SECONDS = 2.0  # the word of a rank that failed comes in milliseconds, a busy machine's in more
# What gloo, NCCL and the store say when the other end of a connection is gone.
SIGNS_OF_PEERS = ("by peer", "ncclRemoteError", "remote process exited", "Broken pipe", "Socket Closed")

logger = logging.getLogger(__name__)


def give_up(error: Exception, watchdog: Watchdog, run: Run | None) -> None:
    """Called when a rank fails: tell the others, close the files; nothing here waits for long.

    Raises PeerError when the error is another rank's end; then the listener, which may know more, ends this process
    first if it can.
    """
    if watchdog.launch.world_size > 1 and is_of_peers(error):
        time.sleep(HEAR_SECONDS)
        raise PeerError(line_with_kind(error)) from error
    watchdog.listener.tell_failure(first_line(error) if isinstance(error, CmbertError) else line_with_kind(error))
    if run is not None and run.reporter is not None:
        background(_close, run.reporter).join(CLOSE_SECONDS)


def is_of_peers(error: Exception) -> bool:
    """Return whether an error only says that another rank, or the store of rank 0, has ended."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        isinstance(error, DistNetworkError) or any(sign in text for sign in SIGNS_OF_PEERS)
    )


def _close(reporter: Reporter) -> None:
    try:
        reporter.close()
    except OSError as error:  # the disk may be what the rank fails of
        logger.warning("metrics and ledger may lack the last steps: %s", error)
