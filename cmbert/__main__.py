import sys

from cmbert.cluster.preemption import StopRequest
from cmbert.standard_streams import use_utf8


def main() -> int:
    """Run one command; a training hears signals before anything that takes time is imported."""
    use_utf8()
    stop = StopRequest()
    if sys.argv[1:2] == ["train"]:
        stop.listen()
    from cmbert.cli import main

    return main(stop=stop)


if __name__ == "__main__":
    sys.exit(main())
