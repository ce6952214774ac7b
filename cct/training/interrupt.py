"""SIGINT and SIGTERM as a request to stop after the current step."""

import signal
import threading
import time

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupt:
    """Context manager: `signal` is None, or the signal that asked to stop.

    A second signal acts as it would without this, so that a hanging run can be ended; not in the first `patience` seconds:
    torchrun passes on the Ctrl-C that its processes have had from the terminal. Does nothing outside the main thread.

    child: None, or the process (subprocess.Popen) that works for us. Whoever reads `signal` ends it; a second one does at once.

    After an error of a process with `patience`, one of several, SIGTERM stays ignored: torchrun sends it to all of them as soon
    as one is lost, and each of the others has to say so first. One that does not end is killed by torchrun half a minute later.
    """

    def __init__(self, patience=0.0):
        self.signal, self.patience, self.child = None, patience, None
        self._before, self._noted = {}, -float("inf")

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        return self

    def __exit__(self, error, *_):
        if error is not None and self.patience > 0 and self._before:
            self._before[signal.SIGTERM] = signal.SIG_IGN
        self._restore()

    def _note(self, number, frame):
        if self.signal is None:
            self.signal, self._noted = signal.Signals(number), time.monotonic()
            if self.patience == 0 and self.child is None:
                self._restore()
        elif time.monotonic() - self._noted > self.patience:
            if self.child is not None:
                self.child.terminate()
            self._restore()
            signal.raise_signal(number)

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
