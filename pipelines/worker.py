"""The process that every launcher starts: one worker of a search, which works until the study's target is met.

``python -m pipelines.worker SETTINGS.json NUMBER``; what it prints last says how it ended.
"""

import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from multimodal import FlowpruneError
from pipelines.cluster.last_words import DONE, ERROR, STOPPED
from pipelines.console import quieten_libraries
from pipelines.extensions import load_extensions
from pipelines.settings import Settings
from pipelines.stages import search
from search.worker import interruptible

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # cancelled; preempted, or out of time (submitit)


def run(settings: Settings, worker: int) -> None:
    """Join the study, and work until its target is met.

    Args:
        settings: of the run.
        worker: its number among the study's workers.

    Raises:
        FlowpruneError: what this host lacks.
    """
    joined = search.join(settings, worker)
    study, target = joined.study, settings.search.trials
    with search.tracked(settings, study, beside_others=True) as tracker, interruptible(study, target):
        search.work(joined, target, tracker, lambda: print(".", end="", flush=True))


def main() -> None:
    """Entry point."""
    quieten_libraries()
    for number in SIGNALS:
        signal.signal(number, _stop)
    try:
        settings = Settings.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
        load_extensions(settings.extensions)
        run(settings, int(sys.argv[2]))
    except FlowpruneError as error:
        sys.exit(f"\n{ERROR}{error}")
    except KeyboardInterrupt:
        sys.exit(f"\n{STOPPED}")
    except Exception as error:
        traceback.print_exc()
        sys.exit(f"\n{ERROR}{type(error).__name__}: {error}")
    print(f"\n{DONE}")


def _stop(number: int, _: FrameType | None) -> None:
    for further in SIGNALS:  # Slurm sends several
        signal.signal(further, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
