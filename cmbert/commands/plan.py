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
        "assumed has its source in docs/scale.md.",
    )
    add_recipe(plan)
    plan.add_argument("--gpus", type=positive, default=8, metavar="N", help="number of GPUs (default 8)")
    plan.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    plan.add_argument("--page", type=new_file, metavar="FILE.html", help="also draw it all on an HTML page")
    for name, help in PLAN_ASSUMPTIONS:
        default = getattr(Assumptions, name)
        kind = share if name == "mfu" else positive_number
        option = f"--{name.replace('_', '-')}"
        plan.add_argument(option, type=kind, default=default, metavar="X", help=f"{help} (default {default:g})")
    plan.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print the plan of a recipe, and draw its page if asked."""
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
