"""`cmbert plan`: what a recipe costs, before it runs."""

import argparse

from cmbert.cli_values import new_file, positive, positive_number, share
from cmbert.commands.shared import add_recipe
from cmbert.plan.assumptions import Assumptions

PLAN_ASSUMPTIONS = (  # fields of Assumptions that can be set, and help
    ("gpu_memory_gb", "memory of one GPU, 1e9 bytes"),
    ("mfu", "share of the GPU's peak that training reaches, 0 to 1"),
    ("bandwidth_gbits", "network per GPU and direction, Gbit/s"),
    ("node_mtbf_hours", "hours between two failures of one node"),
    ("stall_seconds", "training stands still for a checkpoint, seconds"),
    ("write_seconds", "then its files take, seconds"),
    ("restart_minutes", "from a failure until training goes on, minutes"),
)


def add(commands: argparse._SubParsersAction) -> None:
    """Add `plan`."""
    plan = commands.add_parser(
        "plan",
        help="what a recipe costs, before it runs",
        description="Parameters, memory, steps, disk, time on more GPUs, failures. Refuses what cannot work. What is "
        "assumed has its source in docs/scale.md. One screen for this machine (no --gpus) and for stages of less than "
        "one hour of a GPU; more for larger ones, with --long, or with any of the options about GPUs below.",
    )
    add_recipe(plan)
    plan.add_argument(
        "--gpus",
        type=positive,
        metavar="N",
        help="number of GPUs, or of processes where there is no GPU (default: this machine's GPUs, else one process)",
    )
    plan.add_argument(
        "--measure", action="store_true", help="also train ten steps of this recipe's shapes here, and time them"
    )
    plan.add_argument(
        "--long", action="store_true", help="every ZeRO stage, more GPUs, failures, the schedule, also of a small run"
    )
    plan.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    plan.add_argument("--page", type=new_file, metavar="FILE.html", help="also draw it all on an HTML page")
    for name, help in PLAN_ASSUMPTIONS:
        default = getattr(Assumptions, name)
        kind = share if name == "mfu" else positive_number
        option = f"--{name.replace('_', '-')}"
        plan.add_argument(option, type=kind, metavar="X", help=f"{help} (default {default:g})")
    plan.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print the plan of a recipe, and draw its page if asked."""
    from dataclasses import replace

    from cmbert.config.load import load_recipe
    from cmbert.plan.machine import look_at_machine, processes_here
    from cmbert.plan.plan import is_small_run, make_plan
    from cmbert.plan.short import print_plan

    recipe, machine = load_recipe(options.recipe, options.overrides), look_at_machine()
    given = {name: getattr(options, name) for name, _ in PLAN_ASSUMPTIONS if getattr(options, name) is not None}
    assumed = {**({"gpu_memory_gb": machine.memory_bytes / 1e9} if machine.num_gpus else {}), **given}
    is_cluster_asked = options.gpus is not None
    assumptions = Assumptions(**(given if is_cluster_asked else assumed))
    plan = make_plan(recipe, options.gpus or processes_here(recipe.train, machine), assumptions)
    is_small = not options.long and not given and is_small_run(plan, is_cluster_asked=is_cluster_asked)
    plan = replace(plan, is_small=is_small, machine=machine if is_small else None)
    if options.measure:
        from cmbert.plan.measure import measure

        plan = replace(plan, measured=measure(recipe, plan.num_gpus, machine))
    print_plan(plan, as_json=options.json)
    if options.page:
        from cmbert.plan.page import write_plan_page

        write_plan_page(plan, options.page)
        if not options.json:
            print(f"\nPage: {options.page}")
    return 0
