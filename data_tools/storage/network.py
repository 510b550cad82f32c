"""Which errors are the network's or a server's and may be gone in a minute; their libraries have no kind in common."""

from cmbert.errors import may_pass

NETWORK = {"aiohttp", "http", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"}
"""Whose errors are the network's."""
NETWORK_KINDS = {  # of libraries that have others, too
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.parsers.ResponseParserError",  # a server under load does not answer in XML
    "oss2.exceptions.RequestError",
}
PASSING_STATUS = {408, 425, 429, *range(500, 600)}  # of HTTP: too slow, too often, the server's own fault


def is_network(error: Exception) -> bool:
    """Return whether the same may work in a minute."""
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
    if isinstance(status, int) and status >= 100:  # oss2 has others for what is no answer
        return status in PASSING_STATUS
    if "Offline" in str(error):  # HF_HUB_OFFLINE is set: a user's wish
        return False
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    modules = {kind.partition(".")[0] for kind in kinds}
    return (
        may_pass(error)
        or isinstance(error, ConnectionError | TimeoutError)
        or bool(modules & NETWORK)
        or bool(kinds & NETWORK_KINDS)
    )
