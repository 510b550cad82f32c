"""`cmbert`: plan | preflight | train | eval | ablate | finetune | embed-train | ledger | bench | export | report.

Each command imports what it needs when it runs, so --help is instant.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cmbert.cli_evaluate import add_ablate, add_bench, add_eval
from cmbert.cli_transfer import add_embed_train, add_finetune
from cmbert.cli_values import (
    any_path,
    new_file,
    not_negative,
    positive,
    positive_number,
    share,
    step_range,
    utf8_path,
    words,
)
from cmbert.cluster.launchers import is_launched, variables_in
from cmbert.cluster.preemption import StopRequest
from cmbert.environment import make_room_for_modules
from cmbert.errors import run_command
from cmbert.plan.assumptions import Assumptions
from cmbert.progress import log_to_stdout
from cmbert.standard_streams import guard_standard_streams

PLAN_ASSUMPTIONS = (  # fields of Assumptions that can be set, and help
    ("gpu_memory_gb", "memory of one GPU, 1e9 bytes"),
    ("mfu", "share of the GPU's peak that training reaches, 0 to 1"),
    ("bandwidth_gbits", "network per GPU and direction, Gbit/s"),
    ("node_mtbf_hours", "hours between two failures of one node"),
    ("stall_seconds", "training stands still for a checkpoint, seconds"),
    ("write_seconds", "then its files take, seconds"),
    ("restart_minutes", "from a failure until training goes on, minutes"),
)


def main(arguments: Sequence[str] | None = None, stop: StopRequest | None = None) -> int:
    """Run one command; return 0, 2 for a user's mistake, 74 for what may pass. Commands of ranks end the process.

    They do so with 75, too, for a training run that was asked to stop (70: hung; 1: this or another rank failed).
    stop: listens to signals already, if it is a training that runs.
    """
    guard_standard_streams()
    options = build_parser().parse_args(arguments)
    options.stop = stop or StopRequest()
    log_to_stdout("cmbert", "%(asctime)s %(message)s")
    names = variables_in(os.environ)
    rank = os.environ[names[0]] if names else "0"
    program = "cmbert" if rank == "0" else f"cmbert (rank {rank})"
    if options.command in (_train, _preflight):
        from cmbert.cluster.ending import end, leave_when_asked

        if options.command == _preflight:
            leave_when_asked(program)  # there is nothing to save
        end(program, lambda: options.command(options))
    make_room_for_modules()
    return run_command(program, lambda: options.command(options))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="cmbert", description="Pretrain, evaluate and export Chinese ModernBERT.")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # deepspeed's launcher gives it, beside LOCAL_RANK
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    judges = (add_eval, add_ablate, add_finetune, add_embed_train, add_bench)
    for add in (_add_plan, _add_preflight, _add_train, *judges, _add_ledger, _add_export, _add_report):
        add(commands)
    return parser


def _add_plan(commands: argparse._SubParsersAction) -> None:
    plan = commands.add_parser(
        "plan",
        help="what a recipe costs, before it runs",
        description="Parameters, memory, steps, disk, time on more GPUs, failures. Refuses what cannot work. What is "
        "assumed has its source in docs/scale.md.",
    )
    _add_recipe(plan)
    plan.add_argument("--gpus", type=positive, default=8, metavar="N", help="number of GPUs (default 8)")
    plan.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    plan.add_argument("--page", type=new_file, metavar="FILE.html", help="also draw it all on an HTML page")
    for name, help in PLAN_ASSUMPTIONS:
        default = getattr(Assumptions, name)
        kind = share if name == "mfu" else positive_number
        option = f"--{name.replace('_', '-')}"
        plan.add_argument(option, type=kind, default=default, metavar="X", help=f"{help} (default {default:g})")
    plan.set_defaults(command=_plan)


def _add_preflight(commands: argparse._SubParsersAction) -> None:
    preflight = commands.add_parser(
        "preflight",
        help="are this job's nodes fit",
        description="Check GPUs, memory, disk, matmul and all-reduce of every node against the others; started like "
        "train and with its options. Exit 69: nodes are not fit. 2: too many starts without a new checkpoint.",
    )
    _add_train_options(preflight)
    preflight.add_argument(
        "--result", type=any_path, required=True, metavar="DIR", help="shared folder for `life` and `bad_nodes`"
    )
    preflight.add_argument(
        "--nodes", type=words, default=[], metavar="A,B", help="names in the order of ranks (default: not known)"
    )
    preflight.add_argument(
        "--wait-seconds",
        type=positive_number,
        default=300,
        metavar="S",
        help="a rank silent for so long is dead (default 300)",
    )
    preflight.add_argument(
        "--max-lives", type=not_negative, metavar="N", help="starts of a job at one checkpoint (default: any number)"
    )
    preflight.set_defaults(command=_preflight)


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train",
        help="train one stage",
        description="Train one stage. Start it alone or by torchrun, deepspeed, srun or mpirun, one process per GPU.",
    )
    _add_train_options(train)
    train.set_defaults(command=_train)


def _add_train_options(train: argparse.ArgumentParser) -> None:
    _add_recipe(train)
    train.add_argument(
        "--resume", default="auto", metavar="auto|never|PATH", help="continue what the run has (default auto)"
    )
    train.add_argument("--max-steps", type=positive, metavar="N", help="stop after N optimizer steps of this call")
    train.add_argument("--stop-after-seconds", type=positive_number, metavar="S", help="save and stop after S seconds")
    train.add_argument(
        "--skip-steps",
        type=step_range,
        metavar="A:B",
        help="leave out the data of steps A to B-1, still to do: bad batches; recorded in checkpoints and ledger",
    )
    train.add_argument(
        "--allow-unfinished", action="store_true", help="start although the run that train.init_from names is not done"
    )


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser(
        "export",
        help="a folder that transformers, sentence-transformers or onnxruntime loads",
        description="Write a model folder with a card, once its logits on training text equal ours. Needs no GPU.",
    )
    export.add_argument("model", type=utf8_path, help="run directory or checkpoint")
    export.add_argument("--output", type=utf8_path, required=True, metavar="DIR", help="folder to make")
    export.add_argument(
        "--format",
        choices=["hf", "hf-modernbert", "onnx"],
        default="hf",
        help="hf-modernbert: insist on stock ModernBERT, for LayerNorm models; onnx: model.onnx (default hf)",
    )
    export.set_defaults(command=_export)


def _add_ledger(commands: argparse._SubParsersAction) -> None:
    ledger = commands.add_parser(
        "ledger", help="what a step saw", description="Which documents a step saw; the decoded batch with its masks."
    )
    ledger.add_argument("run", type=utf8_path, help="run directory")
    ledger.add_argument("--step", type=not_negative, required=True, metavar="N", help="optimizer step, counted from 0")
    ledger.add_argument("--show", action="store_true", help="also print the texts, ⟦masked⟧ (default: documents only)")
    ledger.set_defaults(command=_ledger)


def _add_report(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser("report", help="one HTML page about a run", description="Curves and figures of a run.")
    report.add_argument("run", type=any_path, help="run directory, or a folder of stages")
    report.add_argument("--output", type=new_file, required=True, metavar="FILE.html", help="page to write")
    report.set_defaults(command=_report)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=any_path, help="recipe file (TOML), see recipes/")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=value", help="override a key; repeatable"
    )


def _plan(options: argparse.Namespace) -> int:
    from cmbert.config.load import load_recipe
    from cmbert.plan.describe import print_plan
    from cmbert.plan.plan import make_plan

    given = {name: getattr(options, name) for name, _ in PLAN_ASSUMPTIONS}
    plan = make_plan(load_recipe(options.recipe, options.overrides), options.gpus, Assumptions(**given))
    print_plan(plan, as_json=options.json)
    if options.page:
        from cmbert.plan.page import write_plan_page

        write_plan_page(plan, options.page)
        if not options.json:
            print(f"\nPage: {options.page}")
    return 0


def _preflight(options: argparse.Namespace) -> int:
    from cmbert.cluster.distributed import read_launch
    from cmbert.cluster.preflight import preflight
    from cmbert.config.load import load_recipe

    recipe, launch = load_recipe(options.recipe, options.overrides), read_launch(os.environ)
    run = Path(recipe.run_directory)

    def begin() -> None:
        from cmbert.train.lives import begin_life, steps_to_reach

        reach = steps_to_reach(recipe, options.resume, options.max_steps, options.allow_unfinished)
        begin_life(run, launch, options.result, options.max_lives, reach)

    return preflight(
        run, launch, result=options.result, nodes=options.nodes, wait_seconds=options.wait_seconds, begin=begin
    )


def _train(options: argparse.Namespace) -> int:
    options.stop.listen()  # before the imports that take seconds: a signal then, too, ends in an orderly way
    options.stop.limit(options.stop_after_seconds)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost peer is 25 lines of C++ frames on every rank
    from cmbert.config.load import load_recipe
    from cmbert.train.loop import train

    if is_launched(os.environ):
        options.stop.follow_launcher()
    return train(
        load_recipe(options.recipe, options.overrides),
        resume=options.resume,
        max_steps=options.max_steps,
        stop=options.stop,
        skip_steps=options.skip_steps,
        allow_unfinished=options.allow_unfinished,
    )


def _export(options: argparse.Namespace) -> int:
    from cmbert.export.release import export

    export(options.model, options.output, options.format)
    return 0


def _ledger(options: argparse.Namespace) -> int:
    from cmbert.runs.ledger_view import print_step

    print_step(options.run, options.step, show=options.show)
    return 0


def _report(options: argparse.Namespace) -> int:
    from cmbert.report.page import write_report

    write_report(options.run, options.output)
    return 0
