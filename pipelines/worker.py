"""The process that every launcher starts: one worker of a search, which works until the study's target is met.

``python -m pipelines.worker SETTINGS.json NUMBER``; what it prints last says how it ended.
"""

import sys
import traceback
from pathlib import Path

from multimodal import FlowpruneError
from pipelines.cluster.worker_log import DONE, ERROR, STOPPED
from pipelines.console import quieten_libraries
from pipelines.extensions import load_extensions
from pipelines.full_disk import full_disk
from pipelines.settings import Settings
from pipelines.stopping import OF_A_CLUSTER, stop_on
from pipelines.tracking import tracked
from pipelines.trials import join, work
from pipelines.workspace import Workspace
from search.worker import interruptible


def run(workspace: Workspace, worker: int) -> None:
    """Join the study, and work until its target is met.

    Args:
        workspace: of the run.
        worker: its number among the study's workers.

    Raises:
        FlowpruneError: what this host lacks.
    """
    joined = join(workspace, worker)
    study, target = joined.study, workspace.settings.search.trials
    with tracked(workspace, study, beside_others=True) as tracker, interruptible(study, target):
        work(joined, target, tracker, lambda: print(".", end="", flush=True))


def main() -> None:
    """Entry point."""
    quieten_libraries()
    stop_on(OF_A_CLUSTER)
    settings = None
    try:
        settings = Settings.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
        load_extensions(settings.extensions)
        run(Workspace(settings), int(sys.argv[2]))
    except FlowpruneError as error:
        sys.exit(f"\n{ERROR}{error}")
    except KeyboardInterrupt:
        sys.exit(f"\n{STOPPED}")
    except Exception as error:
        if settings is not None and (full := full_disk(error, settings)) is not None:
            sys.exit(f"\n{ERROR}{full}")
        traceback.print_exc()
        sys.exit(f"\n{ERROR}{type(error).__name__}: {error}")
    print(f"\n{DONE}")


if __name__ == "__main__":
    main()
