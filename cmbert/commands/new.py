"""`cmbert new`: a recipe of one's own."""

import argparse

from cmbert.cli_values import any_path, new_folder, positive

SIZES = ("tiny", "small", "base", "large")
MOST_PROCESSES = 8  # of a laptop or one GPU box; ours


def add(commands: argparse._SubParsersAction) -> None:
    """Add `new`."""
    new = commands.add_parser(
        "new",
        help="write a recipe of your own, and what to type next",
        description="Write NAME/stage1.toml and NAME/stage2.toml, every number with its reason, and print the commands "
        "that lead from text to an exported model.",
    )
    new.add_argument("name", type=new_folder, metavar="NAME", help="folder to make; all that is trained will lie there")
    new.add_argument("--size", choices=SIZES, help="of the model (default: by the amount of text, else tiny)")
    new.add_argument(
        "--text", type=any_path, nargs="+", default=[], metavar="PATH", help="your text: files and folders to measure"
    )
    new.add_argument(
        "--text-key",
        nargs="+",
        default=["text"],
        metavar="KEY",
        help="name of the text's field or column (default text); several if files differ",
    )
    new.add_argument(
        "--tokens", type=positive, metavar="N", help="tokens to train on (default: by the text, else by the size)"
    )
    new.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write the recipes and print what to type."""
    from cmbert.config.new import commands_for, plan_order, write_order
    from cmbert.config.texts import measure_texts, texts_by_key
    from cmbert.plan.machine import look_at_machine

    texts = texts_by_key(options.text, options.text_key)
    text = measure_texts(options.text) if options.text else None
    order = plan_order(options.name, options.size, text, options.tokens)
    machine = look_at_machine()
    processes = min(MOST_PROCESSES, machine.most_processes)
    soon = machine.num_gpus > 0 or order.size == "tiny"  # else ten steps take minutes
    commands = commands_for(order, texts, processes, measure=soon)
    first, second = write_order(order, commands)
    if text:
        print(f"text: about {text.utf8_bytes / 1e6:,.1f} MB, some {text.tokens / 1e6:,.1f}M tokens")
    print(f"{first} and {second}: {order.size} ({order.why_size}), {order.vocabulary:,} ids")
    print(f"{order.tokens:,} tokens: {order.why_tokens}")
    if not options.text:
        print(f"Put your text into {options.name / 'raw'} (.jsonl, .txt, .parquet ...).")
    print("\nType next, in this order (the same lines stand at the head of the first recipe):\n")
    print("\n".join(f"    {command}" for command in commands))
    return 0
