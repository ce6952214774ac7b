"""What the operating system says of a file, as one line that names file and mend."""

import contextlib
import errno
import os
import sys

MENDS = {
    errno.EACCES: "check its permissions and those of the folders above, or name another place",
    errno.EPERM: "check its permissions and those of the folders above, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path, which leads through a file",
    errno.ELOOP: "check the links on this path",
}


def is_full(error):
    """Whether the error says that the disk, or our part of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def told(error):
    """The line about an OSError; None for any other error, and for one that names no file: that is a fault of ours."""
    if is_full(error):
        what = "the output cannot be written" if error.filename is None else f"{error.filename} cannot be written"
        return f"{what}: the disk is full. Make room, then run it again"
    if not isinstance(error, OSError) or error.filename is None:
        return None
    return f"{error.filename}: {error.strerror or error}; {MENDS.get(error.errno, 'check it, or name another place')}"


def discard_output():
    """What stdout holds back and what comes after it goes nowhere: else Python would fail on it once more when it ends."""
    with contextlib.suppress(OSError):  # of a stdout without a descriptor, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
