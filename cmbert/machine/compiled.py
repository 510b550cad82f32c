"""Functions compiled by numba; its only home. Plain arrays in, plain arrays out, no state.

They are compiled once per machine (some ten seconds) and kept in __pycache__, or in the user's cache folder.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def compiled(function: Callable[..., Any]) -> Any:
    """Let numba compile a function when it is first called, and keep that where there is a folder to keep it in."""
    from numba import njit  # half a second, and only for those who compute

    try:
        return njit(cache=True)(function)
    except RuntimeError as error:  # "no locator available"
        _say_once(str(error))
        return njit(function)


@functools.cache
def _say_once(said: str) -> None:
    logger.info("kernels are compiled anew by each process: %s; name a folder by NUMBA_CACHE_DIR", said)
