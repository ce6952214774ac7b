"""SIGINT and SIGTERM as a request to stop after the current step."""

import signal
import threading

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupt:
    """Context manager: `signal` is None, or the signal that asked to stop.

    A second signal acts as it would without this, so that a hanging run can be ended. Does nothing outside the main thread.
    """

    def __init__(self):
        self.signal = None
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        return self

    def __exit__(self, *exc):
        self._restore()

    def _note(self, number, frame):
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
