"""A process that is told to end stops as it does after Ctrl-C: trials are put back, what was found is written."""

import signal
from types import FrameType

TERMINATED = (signal.SIGTERM,)
OF_A_CLUSTER = (signal.SIGTERM, signal.SIGUSR2)  # cancelled; preempted, or out of time (submitit)


class WorkersGoOn(KeyboardInterrupt):
    """An interruption of the command that shows a search, and not of the search."""


def stop_on(numbers: tuple[signal.Signals, ...]) -> None:
    """Take the first of these signals for an interruption, and no notice of further ones, of which Slurm sends some."""

    def stop(number: int, frame: FrameType | None) -> None:
        for further in numbers:
            signal.signal(further, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, stop)
