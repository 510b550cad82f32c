"""Run by test_muon_zero.py: Muon saved under a launcher, loaded as it is, and through the universal form."""

from pathlib import Path
from typing import Any

import torch

from cmbert.checkpoint.host_copy import HostCopy
from cmbert.cluster.distributed import gather_from_ranks, on_first_rank
from cmbert.zero.engine import convert_to_universal, load_engine, save_engine
from tests.cmbert.zero.muon_steps import NUM_STEPS, gradients, start, whole
from tests.cmbert.zero.ranks import save_found


def save(engine: Any, directory: Path) -> None:
    """Save as the trainer does: copied to host memory first."""
    tables: list[tuple[str, Any]] = []
    (directory / "saved").mkdir(parents=True, exist_ok=True)
    save_engine(engine, directory, "saved", lambda table, path: tables.append((path, table)))
    for path, table in HostCopy(torch.device("cpu")).take(tables):
        torch.save(table, path)
    torch.distributed.barrier()


def steps(engine: Any, first: int, last: int) -> list[torch.Tensor]:
    for step in range(first, last + 1):
        engine.backward(engine(gradients(step)))
        engine.step()
    return whole(list(engine.module.parameters()))


def second_moments(engine: Any) -> list[int]:
    """Bytes of what stands for them, of matrices, in the states and in DeepSpeed's views of these."""
    optimizer, layout = engine.basic_optimizer, engine.basic_optimizer.layout
    parameters = list(engine.module.parameters())
    found = [
        optimizer.state[flat]["exp_avg_sq"]
        for flat, held in layout.fragments.items()
        if any(parameters[part.parameter] in optimizer.stacked for part in held)
    ]
    mappings = [getattr(parameter, "_hp_mapping", None) for parameter in optimizer.stacked]
    found += [mapping.optim_fragment["exp_avg_sq"] for mapping in mappings if mapping is not None]
    return [moment.untyped_storage().nbytes() for moment in found]


def resume(case: str, directory: Path) -> dict[str, Any]:
    """Return the weights of an unbroken training and of two that were broken, and what second moments took."""
    engine = start(case)
    half = NUM_STEPS // 2
    steps(engine, 1, half)
    save(engine, directory)
    found = {"unbroken": steps(engine, half + 1, NUM_STEPS)}
    if problem := on_first_rank(lambda: convert_to_universal(directory / "saved", directory / "universal")):
        raise problem
    kept = []
    for name in ("saved", "universal"):
        engine = start(case)
        load_engine(engine, directory / name, universal=name == "universal")
        kept += second_moments(engine)
        found[name] = steps(engine, half + 1, NUM_STEPS)
        kept += second_moments(engine)
    return {**found, "kept": gather_from_ranks(kept)}


def main(folder: Path) -> dict[str, Any]:
    return {case: resume(case, folder / f"zero{case}") for case in ("1", "2", "3")}


if __name__ == "__main__":
    save_found(main)
