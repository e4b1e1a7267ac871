"""How a worker ended, from what it printed last: its log is the one thing every launcher keeps."""

from collections.abc import Iterable

ERROR, STOPPED, DONE = "error: ", "stopped: its trial waits for another worker", "done: the study has its trials"


def reason(log: Iterable[str]) -> str | None:
    """Why a worker that is gone failed, in a line; None if it did not.

    Args:
        log: the lines of its log.
    """
    last = None
    for line in log:
        if line.startswith((ERROR, STOPPED, DONE)):
            last = line.strip()
    if last is None:
        words = [line.strip() for line in log if line.strip(" .\n")]
        end = f"its log ends with {words[-1]!r}" if words else "its log is empty"
        return f"it ended without a word, perhaps killed or out of memory; {end}"
    return last.removeprefix(ERROR) if last.startswith(ERROR) else None
