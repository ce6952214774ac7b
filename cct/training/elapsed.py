"""Wall-clock time from the start of the process, which is what a user waits."""

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def process_seconds():
    """Seconds since this process began, interpreter and imports counted in; under torchrun, since torchrun began.

    Where the system does not say (it has no /proc), seconds since this module was imported.
    """
    process = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()  # after the name, which may hold spaces
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.monotonic() - _IMPORTED


def clock(seconds):
    """221 -> '3:41', 3725 -> '1:02:05'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
