"""Files in a store: found as on a disk, read by ranges, tried again, told when they change."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data_tools.input.tasks
import data_tools.storage.connection
import data_tools.storage.files
from cmbert.errors import ConfigError, InputError, TransientError
from data_tools.input.listing import input_files
from data_tools.input.readers import ByteRange, DocumentReader, whole_files
from data_tools.input.tasks import plan_tasks
from data_tools.outputs import describe_inputs
from data_tools.storage.files import FIRST_BYTES, MOST_BYTES, RemoteFile, open_input
from tests.data_tools.storage.fault_proxy import Proxy

Upload = Callable[[str, bytes], str]
FAULTS = ("SlowDown", "TooManyRequests", "InternalError", "NoXML", "drop", "cut", "short")


def lines(number: int, prefix: str = "文章") -> bytes:
    return b"".join(json.dumps({"text": f"{prefix}{i}"}, ensure_ascii=False).encode() + b"\n" for i in range(number))


def one_file(url: str) -> RemoteFile:
    (file,) = input_files([url])
    assert isinstance(file, RemoteFile)
    return file


def test_folders_and_globs(upload: Upload) -> None:
    kept = ["a b/第一 章.jsonl", "a b/x+y&z=1%.jsonl", "a b/deep/er/2.txt", "a b/3.json"]
    for key in kept[:3]:
        upload(key, lines(1))
    upload(kept[3], b'["\xe6\x96\x87"]')
    for key in ("a b/", "a b/.hidden/1.jsonl", "a b/.2.jsonl", "a b/report.json", "a b/README.md", "ab.jsonl"):
        upload(key, b"{}\n" * (key != "a b/"))

    def found(*names: str) -> list[str]:
        return [str(file).removeprefix("s3://corpus/") for file in input_files([f"s3://corpus/{n}" for n in names])]

    assert found("a b") == found("a b/") == sorted(kept)
    assert found("a b/*.jsonl") == sorted(kept[:2])
    assert found("a b/**/*.txt") == [kept[2]]
    assert found("a*") == sorted([*kept, "ab.jsonl"])
    assert found("a b/deep", "a b/deep/er/2.txt") == [kept[2]]
    assert found("a b/report.json") == ["a b/report.json"]
    assert found("a b/.hidden/1.jsonl") == ["a b/.hidden/1.jsonl"]
    assert [file.name for file in input_files([f"s3://corpus/{kept[0]}"])] == ["第一 章.jsonl"]
    for name in ("none", "none.jsonl", "a b/*.csv", "a b/none*"):
        with pytest.raises(InputError, match=f"s3://corpus/{name.replace('*', '[*]')}: no"):
            found(name)
    with pytest.raises(InputError, match=r"README.md: not a"):
        found("a b/README.md")


def test_more_objects_than_a_page_has(upload: Upload, proxy: Proxy) -> None:
    for number in range(1_500):
        upload(f"many/{number:04d}.jsonl", b"{}\n")
    files = input_files(["s3://corpus/many"])
    assert [file.name for file in files] == [f"{number:04d}.jsonl" for number in range(1_500)]
    assert len(proxy.requests) < 20  # not one for each


def test_a_task_fetches_about_its_range(upload: Upload, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 1_000_000)
    monkeypatch.setattr(data_tools.storage.files, "FIRST_BYTES", 20_000)
    text = lines(80_000, "很长的文章" * 3)
    file = one_file(upload("large.jsonl", text))
    tasks = plan_tasks([file])
    assert len(tasks) >= 3
    seen = []
    for task in tasks:
        proxy.reset()
        seen += list(DocumentReader(task.ranges))
        assert proxy.served < 1.01 * task.num_bytes + 2 * 20_000 * len(task.ranges)
    assert [document.text for document in seen] == [f"{'很长的文章' * 3}{i}" for i in range(80_000)]


def test_it_seeks_and_tells_like_a_file(upload: Upload, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3 * FIRST_BYTES + 5)
    file, path = one_file(upload("x.txt", data)), tmp_path / "x.txt"
    path.write_bytes(data)
    steps = np.random.default_rng(1).integers(0, len(data) + 9, (60, 2)).tolist()
    with open_input(file) as remote, open_input(path) as local:
        for place, count in steps:
            assert remote.seek(place) == local.seek(place)
            assert remote.read(count) == local.read(count)
            assert remote.readline() == local.readline()
            assert remote.tell() == local.tell()
        assert remote.seek(-7, 2) == local.seek(-7, 2)
        assert remote.read() == local.read() == data[-7:]


def test_memory_holds_a_block(upload: Upload, proxy: Proxy) -> None:
    file = one_file(upload("large.txt", b"x\n" * (3 * MOST_BYTES // 2)))
    with open_input(file) as stream:
        while stream.read(1 << 16):
            pass
    sizes = [
        1 + int(end) - int(start) for start, _, end in (r.removeprefix("bytes=").partition("-") for r in proxy.reads())
    ]
    assert max(sizes) == MOST_BYTES
    assert sum(sizes) == file.size
    assert len(sizes) < 10


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass(upload: Upload, proxy: Proxy, fault: str) -> None:
    url = upload("篇.jsonl", lines(50_000))
    proxy.fault = lambda method, path, number: fault if number % 3 < 2 else ""
    assert len(list(DocumentReader(whole_files(input_files([url]))))) == 50_000


def test_a_slow_server_is_waited_for(upload: Upload, proxy: Proxy) -> None:
    url = upload("a.jsonl", lines(1_000))
    proxy.fault = lambda method, path, number: "slow"
    assert len(list(DocumentReader(whole_files(input_files([url]))))) == 1_000


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_stay(upload: Upload, proxy: Proxy, fault: str) -> None:
    file = one_file(upload("篇 1.jsonl", lines(50_000)))
    proxy.reset()
    proxy.fault = lambda method, path, number: fault if method == "GET" else ""
    with pytest.raises(TransientError) as raised:
        list(DocumentReader([ByteRange(file)]))
    said = str(raised.value)
    assert said.startswith("s3://corpus/篇 1.jsonl: read bytes 0 to 262,144: failed 4 times, at last: ")
    assert said.endswith("run the same command again")
    assert "\n" not in said
    assert len(proxy.reads()) == (8 if fault == "drop" else 4)  # aiohttp's own second try on a connection kept alive
    proxy.fault = lambda method, path, number: fault if "list-type" in path else ""
    if fault != "short":  # a page that ends early is no XML
        with pytest.raises(TransientError, match="s3://corpus: list: failed 4 times"):
            input_files(["s3://corpus/"])


def test_an_object_that_changes_is_told(upload: Upload, proxy: Proxy) -> None:
    file = one_file(upload("a.jsonl", lines(1_000)))
    upload("a.jsonl", lines(1_000, "别的"))
    with pytest.raises(
        InputError, match=r"s3://corpus/a.jsonl: changed since this command listed it \(21,890 bytes, ver"
    ):
        list(DocumentReader([ByteRange(file)]))
    upload("a.jsonl", b"broken" * 5_000)  # what is wrong is not its JSON
    with pytest.raises(InputError, match="changed since"):
        list(DocumentReader([ByteRange(file)]))
    upload("a.jsonl", b"")
    with pytest.raises(InputError, match="changed since"):
        list(DocumentReader([ByteRange(file)]))


def test_a_second_run_knows_an_object_again_without_reading_it(upload: Upload, proxy: Proxy) -> None:
    url = upload("a.jsonl", lines(10))
    (first,) = describe_inputs(input_files([url]))
    assert first.keys() == {"name", "bytes", "version"}
    assert [first] == describe_inputs(input_files(["s3://corpus/"]))  # by a listing, too
    assert not proxy.served
    upload("a.jsonl", lines(10, "别的"))
    assert first != describe_inputs(input_files([url]))[0]


def test_it_is_pickled_without_a_connection(upload: Upload) -> None:
    file = one_file(upload("a.jsonl", lines(3)))
    assert list(DocumentReader([ByteRange(file)]))
    again = pickle.loads(pickle.dumps(file))
    assert again == file
    assert len(pickle.dumps(file)) < 300
    assert len(list(DocumentReader([ByteRange(again)]))) == 3


def test_a_bad_line_is_named_by_its_byte(upload: Upload, proxy: Proxy) -> None:
    url = upload("a.jsonl", lines(2) + b"{]\n")
    with pytest.raises(InputError, match=r"s3://corpus/a.jsonl: byte 40: not JSON .*--on-bad-line skip"):
        list(DocumentReader(whole_files(input_files([url]))))


def test_what_a_user_can_mend_is_said(upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    url = upload("a.jsonl", lines(3))
    file = one_file(url)
    with pytest.raises(InputError, match=r"s3://nobody/a.jsonl: not there: no such file, folder or bucket"):
        input_files(["s3://nobody/a.jsonl"])
    with pytest.raises(InputError, match=r"s3://nobody: not there"):
        input_files(["s3://nobody"])
    gone = RemoteFile("s3://corpus/gone.jsonl", file.size, file.version)
    with pytest.raises(InputError, match=r"s3://corpus/gone.jsonl: not there"):
        list(DocumentReader([ByteRange(gone)]))
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match=r"s3://corpus/a.jsonl: Unable to locate credentials; set AWS_ACCESS_KEY_ID"):
        input_files([url])


def test_a_public_bucket_needs_no_credentials(upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    url = upload("a.jsonl", lines(3))
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    fsspec.config.set_conf_env(conf := {}, {"FSSPEC_S3_ANON": "true"})  # as it does at its import
    monkeypatch.setattr(fsspec.config, "conf", fsspec.config.conf | conf)
    monkeypatch.setattr(fsspec.spec.apply_config, "__defaults__", (fsspec.config.conf,))
    assert one_file(url).size == len(lines(3))


def test_no_server(upload: Upload, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    url = upload("a.jsonl", lines(3))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(
        TransientError, match="look for: failed 4 times, at last: Could not connect to the endpoint URL"
    ):
        input_files([url])


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install ossfs to access OSS")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(ConfigError, match=r"oss://b/a.jsonl: needs ossfs; pip install 'cmbert\[storage\]'"):
        input_files(["oss://b/a.jsonl"])


def test_pauses_grow_and_end() -> None:
    pauses = data_tools.storage.connection.PAUSES
    assert list(pauses) == sorted(set(pauses))
    assert 20 < sum(pauses) < 60


def test_oss_is_wired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only how it is reached: no server here speaks its protocol."""
    pytest.importorskip("ossfs")
    monkeypatch.delenv("OSS_ENDPOINT", raising=False)
    with pytest.raises(ConfigError, match=r"oss://b/a.jsonl: endpoint is required; set FSSPEC_OSS_KEY"):
        input_files(["oss://b/a.jsonl"])
