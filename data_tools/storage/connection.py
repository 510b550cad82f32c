"""A connection to a store (S3, OSS, the Hugging Face hub) by fsspec; what fails is tried again where that may help.

The tries are ours alone where the library lets us: what is said of their number is true, and their time has a bound.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cmbert.errors import CmbertError, ConfigError, InputError, TransientError, advice, first_line
from data_tools.storage.network import is_network

PAUSES = (1, 2, 4, 8, 16)  # seconds between tries; ours: half a minute, in which a store lets one in again
SHORTEST = 0.5  # of a pause, by chance: workers that were turned away together do not come back together
EXTRA = "pip install 'cmbert[storage]'"

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Store:
    """What is particular about a kind of store."""

    package: str
    """Of Python; the extra `storage` has it."""
    remedy: str
    """What lets a user in."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of its fsspec file system."""
    reading: dict[str, Any] = field(default_factory=dict)
    """Of a ranged read."""
    asking: dict[str, Any] = field(default_factory=dict)
    """Of a question after one file as it is now."""


STORES = {
    "s3": Store(
        "s3fs",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and AWS_ENDPOINT_URL if it is not Amazon's; "
        "FSSPEC_S3_ANON=true for a public bucket",
        {"use_listings_cache": False},
    ),
    "oss": Store(
        "ossfs",
        "set FSSPEC_OSS_KEY, FSSPEC_OSS_SECRET and OSS_ENDPOINT",
        {"use_listings_cache": False},
    ),
    "hf": Store(
        "huggingface_hub",
        "set HF_TOKEN, and write hf://datasets/OWNER/NAME/FILE",
        reading={"cache_type": "none"},  # else five megabytes more than asked for
        asking={"expand_info": True},  # else it does not say the file's hash
    ),
}
"""By the scheme of a URL. Every option of a file system can be set by fsspec's FSSPEC_SCHEME_OPTION, too."""


class Connection:
    """The store of a URL, for this process; `fsspec` keeps one for each and makes new ones after a fork.

    Whatever is asked raises TransientError after all tries, InputError for what is missing or forbidden, ConfigError
    without credentials or library; each in one line with the URL.
    """

    def __init__(self, url: str):
        self.scheme = url.partition("://")[0]
        self.store = STORES[self.scheme]
        import fsspec

        options = dict(self.store.options)
        if self.scheme == "s3":  # botocore's own tries
            given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **given}
        try:
            with self._saying(url):
                self.system = fsspec.filesystem(self.scheme, **options)
        except ImportError as error:
            raise ConfigError(f"{url}: needs {self.store.package}; {EXTRA}") from error
        if self.scheme == "s3":
            self.system.retries = 1

    def info(self, url: str) -> dict[str, Any]:
        """Return what the store says of one file now: "size", "type" and others."""
        return self._patiently(url, "ask for", lambda: self.system.info(_path(url), refresh=True, **self.store.asking))

    def read(self, url: str, start: int, end: int) -> bytes:
        """Return the bytes [start, end) of a file."""

        def read() -> bytes:
            data = self.system.cat_file(_path(url), start=start, end=end, **self.store.reading)
            if len(data) != end - start:
                raise TransientError(f"{len(data):,} bytes came")
            return data

        return self._patiently(url, f"read bytes {start:,} to {end:,}", read)

    def matches(self, url: str) -> dict[str, dict[str, Any]]:
        """Return by URL what a path or else a glob names, files and folders; nothing for a path that is none."""

        def look() -> dict[str, Any]:
            try:
                return {_path(url): self.system.info(_path(url))}
            except FileNotFoundError:
                if not any(mark in url for mark in "*?["):
                    raise
                return self.system.glob(_path(url), detail=True)

        return self._named(self._patiently(url, "look for", look))

    def files_below(self, url: str) -> dict[str, dict[str, Any]]:
        """Return by URL the files below a folder, to any depth."""
        found = self._patiently(url, "list", lambda: self.system.find(_path(url), detail=True))
        return self._named({path: info for path, info in found.items() if info["type"] == "file"})

    def _named(self, found: dict[str, Any]) -> dict[str, Any]:
        return {f"{self.scheme}://{path}": info for path, info in found.items()}

    def _patiently(self, url: str, what: str, ask: Callable[[], Result]) -> Result:
        """Return what `ask` returns; where its error may pass, try again after each of PAUSES and say so."""
        for tried in range(len(PAUSES) + 1):
            try:
                with self._saying(url):
                    return ask()
            except TransientError as error:
                if tried == len(PAUSES):
                    failed = f"{url}: {what}: failed {tried + 1} times, at last: {error}"
                    raise TransientError(f"{failed}; {advice(passing=True)}") from error
                logger.info("%s: %s: %s; trying again", url, what, error)
            time.sleep(PAUSES[tried] * random.uniform(SHORTEST, 1))
        raise AssertionError

    @contextmanager
    def _saying(self, url: str) -> Iterator[None]:
        """Say in one line whatever the library and those below it raise: they name no kind that all are of.

        A TransientError says only what was wrong: it is tried again.
        """
        try:
            yield
        except (CmbertError, ImportError, MemoryError):
            raise
        except Exception as error:
            said = getattr(error, "strerror", None) or first_line(error) or type(error).__name__
            if is_network(error):
                raise TransientError(said) from error
            if isinstance(error, FileNotFoundError):
                raise InputError(f"{url}: not there: no such file, folder or bucket ({said})") from error
            if isinstance(error, PermissionError):
                raise InputError(f"{url}: forbidden ({said}); {self.store.remedy}") from error
            if isinstance(error, TypeError | AttributeError | KeyError):  # a bug
                raise
            raise ConfigError(f"{url}: {said}; {self.store.remedy}") from error


def _path(url: str) -> str:
    return url.partition("://")[2]
