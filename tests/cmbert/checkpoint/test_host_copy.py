"""The copy of a checkpoint in host memory: equal, of its own storage, one of each tensor, in the same memory again."""

import contextlib
import io

import torch

from cmbert.checkpoint.host_copy import ALIGNMENT, HostCopy


def tables() -> list:
    """What DeepSpeed hands over: views of flat tensors, tied weights, counters, empty tensors, other values."""
    flat = torch.arange(100, dtype=torch.bfloat16)
    weight = flat.narrow(0, 7, 30).view(5, 6)
    state = {
        "step": torch.tensor(3.0),
        "exp_avg": torch.randn(11, 3).t(),
        "empty": torch.empty(0),
        "flag": torch.tensor(True),
    }
    return [
        ("path", {"module": {"tied": weight, "embedding": weight}, "rate": 0.1}),
        ("other", [state, (flat[:3],), None]),
    ]


def test_copies_are_equal_and_independent() -> None:
    originals, host = tables(), HostCopy(torch.device("cpu"))
    copies = host.take(originals)
    (path, first), (_, (state, (part,), nothing)) = copies
    assert (path, first["rate"], nothing) == ("path", 0.1, None)
    expected = {name: tensor.clone() for name, tensor in originals[1][1][0].items()}
    weight = originals[0][1]["module"]["tied"].clone()
    for tensor in originals[1][1][0].values():
        tensor.zero_()
    originals[0][1]["module"]["tied"].zero_()
    assert torch.equal(first["module"]["tied"], weight)
    assert first["module"]["tied"] is first["module"]["embedding"]
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert part.tolist() == [0, 1, 2]


def test_a_saved_copy_is_no_larger_than_its_tensor() -> None:
    (_, first), _ = HostCopy(torch.device("cpu")).take(tables())
    file = io.BytesIO()
    torch.save(first["module"]["tied"], file)
    alone = io.BytesIO()
    torch.save(first["module"]["tied"].clone(), alone)
    assert len(file.getvalue()) == len(alone.getvalue())
    file.seek(0)
    assert torch.equal(torch.load(file), first["module"]["tied"])


def test_memory_is_used_again_and_grows() -> None:
    host = HostCopy(torch.device("cpu"))
    host.take([torch.ones(10)])
    block = host.block.data_ptr()
    (smaller,) = host.take([torch.zeros(4)])
    assert host.block.data_ptr() == block == smaller.data_ptr()
    large = [torch.full((1000,), 2.0), torch.full((3,), 3.0)]
    copies = host.take(large)
    assert all(torch.equal(a, b) for a, b in zip(copies, large, strict=True))
    assert copies[1].data_ptr() % ALIGNMENT == copies[0].data_ptr() % ALIGNMENT
    assert host.block.nbytes >= sum(tensor.nbytes for tensor in large)


class FakeStream:
    """Writes down what a side stream is asked, in place of CUDA, which this machine may not have."""

    def __init__(self, log: list[str]):
        self.log = log

    def wait_stream(self, other: str) -> None:
        self.log.append(f"side waits for {other}")

    def record_event(self) -> "FakeStream":
        self.log.append("event")
        return self

    def synchronize(self) -> None:
        self.log.append("host waits")


def test_the_optimizer_waits_for_the_copy_and_the_host_does_not(monkeypatch) -> None:
    log: list[str] = []

    class Main:
        def wait_event(self, event: object) -> None:
            log.append("main waits for the event")

        def __str__(self) -> str:
            return "main"

    host = HostCopy(torch.device("cpu"))
    host.stream = FakeStream(log)
    host.stream.device = torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Main())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: sound_empty(*a, **k))
    host.hold()  # nothing is on its way yet
    host.take([torch.ones(3)])
    assert log == ["side waits for main", "event"]
    host.hold()
    assert log[2:] == ["main waits for the event"]
    host.wait()
    assert log[3:] == ["host waits"]


sound_empty = torch.empty


def test_of_a_repeated_value_one_is_kept() -> None:
    """Muon has such a zero in place of a second moment, also as a view of a part of it."""
    repeated = torch.full((1,), 3.0).expand(100_000)
    host = HostCopy(torch.device("cpu"))
    (whole, part, alone), file = (
        host.take([repeated, repeated.narrow(0, 7, 60).view(6, 10), torch.ones(1)]),
        io.BytesIO(),
    )
    assert len(host.block) == 3 * ALIGNMENT
    torch.save([whole, part, alone], file)
    assert file.tell() < 10_000
    file.seek(0)
    expected = (torch.full((100_000,), 3.0), torch.full((6, 10), 3.0), torch.ones(1))
    for found, value in zip(torch.load(file), expected, strict=True):
        assert torch.equal(found, value)
        assert found.untyped_storage().nbytes() == 4
