"""datatrove's local executor without its running commentary; each task still has its log file."""

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger


class QuietExecutor(LocalPipelineExecutor):
    """Says nothing on the terminal, in the workers neither; `clean` reports for it."""

    def run(self) -> PipelineStats | None:
        """Run all tasks that are not complete."""
        logger.disable("datatrove")
        return super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        logger.disable("datatrove")  # in each worker
        return super()._run_for_rank(rank, local_rank, node_rank)
