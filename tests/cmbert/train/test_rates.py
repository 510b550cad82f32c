"""MFU of a training step: the benchmark's count over the data sheet's peak; none where there is no sheet."""

import pytest
import torch

from cmbert.config.schema import ModelConfig
from cmbert.machine.hardware import H100_FLOPS, peak_flops
from cmbert.model.cost import count_batch_flops
from cmbert.train.rates import compute_rates

MODEL = ModelConfig(num_layers=3, hidden_size=32, num_heads=2, intermediate_size=48, vocab_size=384)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H800 PCIe", 756e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA H800", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A800-SXM4-80GB", 312e12),
        ("NVIDIA A800 80GB PCIe", 312e12),
        ("NVIDIA A40", 149.7e12),
        ("NVIDIA L20", 119.5e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 D", 147.1e12),
        ("NVIDIA GeForce RTX 5090", 209.5e12),
        ("NVIDIA RTX A6000", 154.8e12),
        ("NVIDIA RTX 6000 Ada Generation", 364e12),
        ("AMD Instinct MI300X", 1307.4e12),
        # Much like the names above, and other boards:
        ("NVIDIA L40", None),
        ("NVIDIA L2", None),
        ("NVIDIA H20-3e", None),
        ("NVIDIA A10G", None),
        ("NVIDIA A16", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 5090 D", None),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", None),
        ("NVIDIA RTX 4000 Ada Generation", None),
        ("Quadro RTX 6000", None),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", None),
        ("AMD Instinct MI300A", None),
        ("AMD Instinct MI325X", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Intel(R) Xeon(R) Processor", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_a_cpu_has_no_mfu() -> None:
    rates = compute_rates(MODEL, {10: 3, 40: 1}, 21.0, 0.5, 2, torch.device("cpu"))
    flops = count_batch_flops(MODEL, [10, 10, 10, 40], 21, training=True)
    assert rates == {"flops_per_second": pytest.approx(flops / 2 / 0.5)}


def test_a_known_gpu_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    rates = compute_rates(MODEL, {40: 100}, 900.0, 1e-6, 1, torch.device("cuda"))
    assert 0 < rates["mfu"] == pytest.approx(rates["flops_per_second"] / H100_FLOPS)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Tomorrow 1")
    assert list(compute_rates(MODEL, {40: 100}, 900.0, 1e-6, 1, torch.device("cuda"))) == ["flops_per_second"]
