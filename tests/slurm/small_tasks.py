"""`data_tools` with tasks so small that two corpora of a megabyte have hundreds: there is much to kill."""

import sys

import data_tools.input.tasks
from data_tools.cli import main

data_tools.input.tasks.SMALLEST_TASK_BYTES = 12_000

if __name__ == "__main__":
    if sys.argv[1] == "clean":
        import data_tools.clean.duplicates.bands

        data_tools.clean.duplicates.bands.MOST_ENTRIES = 1_000
    sys.exit(main(sys.argv[1:]))
