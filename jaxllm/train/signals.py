"""SIGTERM and SIGINT: the first asks a run to end in order, the second ends it at once.

While there is nothing to lose (imports, the building of the store, a restore, the compilation of the step, which may
take minutes) there is nothing to wait for either: the process leaves at once. Python runs its handlers between two of
its own instructions only, so a thread does that, which the interpreter's wakeup file tells of a signal.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

LEAVE = 75
"""Exit code of a run that a signal ended: EX_TEMPFAIL, start again to go on."""


class Stop:
    """What was asked.

    Attributes:
        signal: name of the first signal; empty while there was none.
        at_once: whether a signal ends the process there and then.
        last_words: called before that, each; what they raise is ignored.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.signal = ""
        self.at_once = at_once
        self.last_words: list[Callable[[], object]] = []

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return bool(self.signal)

    def _leave(self, name: str) -> None:
        for words in self.last_words:
            with suppress(Exception):
                words()
        sentence = f"jaxllm: stopped by {name} before the first step; nothing is lost, the same command starts again\n"
        with suppress(OSError):
            os.write(sys.stderr.fileno(), sentence.encode())
        os._exit(LEAVE)

    def _listen(self, descriptor: int) -> None:
        while numbers := os.read(descriptor, 1):
            if self.at_once and numbers[0] in (signal.SIGINT, signal.SIGTERM):
                self._leave(signal.Signals(numbers[0]).name)
        os.close(descriptor)


@contextmanager
def stop_on_signals(at_once: bool = False) -> Iterator[Stop]:
    """Within the block the first SIGINT or SIGTERM is noted; then both do again what they did before.

    Args:
        at_once: leave at the signal, until the run sets `at_once` to False.
    """
    stop = Stop(at_once)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # the caller handles signals
        return
    previous: dict[int, Any] = {}

    def ask(number: int, _: object) -> None:
        stop.signal = signal.Signals(number).name
        for one, handler in previous.items():
            signal.signal(one, handler)

    listen, tell = os.pipe()
    os.set_blocking(tell, False)
    former = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=stop._listen, args=(listen,), name="signals", daemon=True).start()
    for one in (signal.SIGINT, signal.SIGTERM):
        previous[one] = signal.signal(one, ask)
    try:
        yield stop
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(former)
        os.close(tell)  # ends the thread
