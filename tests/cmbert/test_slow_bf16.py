"""A CPU without instructions for bf16 is found out, and told the remedy."""

import torch

from cmbert import accel

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BF16 = torch.bfloat16


def test_a_cpu_that_is_slow_in_bf16_is_told(monkeypatch):
    monkeypatch.setattr(accel, "bf16_slowdown", lambda: 40.3)
    line = accel.describe_slow_bf16(CPU, BF16)
    assert "40 times" in line
    assert "--set train.deepspeed=zero1_fp32" in line
    assert accel.describe_slow_bf16(CPU, torch.float32) == accel.describe_slow_bf16(GPU, BF16) == ""
    monkeypatch.setattr(accel, "bf16_slowdown", lambda: 1.2)
    assert accel.describe_slow_bf16(CPU, BF16) == ""


def test_the_slowdown_is_that_of_the_products_times(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(accel, "time_matmul", lambda side, dtype, device, repeats: 7.0 if dtype == BF16 else 2.0)
    accel.bf16_slowdown.cache_clear()
    try:
        assert accel.bf16_slowdown() == 3.5
        assert torch.get_num_threads() == threads
    finally:
        accel.bf16_slowdown.cache_clear()
