"""`cmbert bench inference|train`: one model, beside a peer of its shape if asked, or several encoders as one table."""

from collections.abc import Sequence
from pathlib import Path

from cmbert.bench.memory import Request, check_bench
from cmbert.bench.rows import keep_rows, print_rows
from cmbert.bench.throughput import Work, bench_throughput, read_shape, workloads
from cmbert.errors import ConfigError


def bench_models(
    work: Work, models: Sequence[Path], overrides: Sequence[str], asked: Request, *, as_json: bool
) -> None:
    """Time models, leave the rows in runs/bench/ and print them. Raises ConfigError for what cannot be timed.

    Of one model each row is printed as it is found.
    """
    if len(models) > 1:
        _bench_table(models, overrides, asked, as_json=as_json)
        return
    model, kernels = read_shape(models[0], overrides)
    loads = workloads(asked.contexts, asked.segments, asked.batch_tokens, model.max_length)
    check_bench(work, model, kernels, asked)
    rows = []
    for row in bench_throughput(work, model, kernels, loads, asked.against):
        rows.append(row)
        if not as_json:
            print_rows([row], as_json=False)
    keep_rows(work, rows)
    if as_json:
        print_rows(rows, as_json=True)


def _bench_table(models: Sequence[Path], overrides: Sequence[str], asked: Request, *, as_json: bool) -> None:
    from cmbert.bench.throughput_table import open_candidates, throughput_table, time_candidates

    if asked.against:
        raise ConfigError(f"--against {asked.against} is for one model: name the peers with --model")
    candidates = open_candidates(models, overrides)
    limits = [candidate.max_length for candidate in candidates if candidate.max_length is not None]
    most = max(limits) if len(limits) == len(candidates) else max([*limits, *asked.contexts, *asked.segments])
    loads = workloads(asked.contexts, asked.segments, asked.batch_tokens, most)
    rows = list(time_candidates(candidates, loads))
    keep_rows("inference_table", rows)
    if as_json:
        print_rows(rows, as_json=True)
    else:
        print(throughput_table(candidates, loads, rows))
