"""An S3 server in this process, behind a proxy with faults; a bucket for each test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.data_tools.storage.fault_proxy import Proxy

BUCKET = "corpus"
Upload = Callable[[str, bytes], str]


@pytest.fixture(scope="session")
def server() -> Iterator[Proxy]:
    """A server with its proxy."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    threaded = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    threaded.start()
    proxy = Proxy(threaded.get_host_and_port()[1])
    yield proxy
    threaded.stop()


@pytest.fixture
def proxy(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy, before an empty bucket, as what this process and its children read from; pauses are short."""
    import s3fs

    server.reset()
    for name, value in (("ACCESS_KEY_ID", "it"), ("SECRET_ACCESS_KEY", "is moto"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.start())
    monkeypatch.setattr("data_tools.storage.connection.PAUSES", (0.01, 0.02, 0.03))
    s3fs.S3FileSystem.clear_instance_cache()
    backend().create_bucket(BUCKET, "us-east-1")
    yield server
    server.stop()
    backend().reset()


@pytest.fixture
def upload(proxy: Proxy) -> Upload:
    """Put an object into the server, not by the proxy; return its URL."""

    def put(key: str, data: bytes) -> str:
        backend().put_object(BUCKET, key, data)
        return f"s3://{BUCKET}/{key}"

    return put


def backend() -> Any:
    """Return what the server serves: a test that puts 1,500 objects need not make as many requests."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
