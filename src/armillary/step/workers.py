"""Processes that read samples beside a rank: a signal to stop is the rank's to meet, not theirs.

`timeout`, a terminal's Ctrl-C and some batch systems signal a rank's whole group. A worker that
ends of it brings the rank down with an error before it has saved.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

LEFT_TO_THE_RANK = (signal.SIGINT, signal.SIGUSR1)
STOPPING = (signal.SIGTERM, *LEFT_TO_THE_RANK)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold signals to stop back, here until this is over, and in processes that are begun meanwhile
    until they let them through: one that comes between a worker's birth and
    `leave_stopping_to_the_rank` waits for it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """Meet signals to stop again, and any that came while they were held back."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def leave_stopping_to_the_rank(worker: int) -> None:
    """Have this process, worker number `worker`, ignore signals to stop that others send it.

    SIGTERM by the rank itself, which is how torch ends a worker that is stuck, still ends it. Who
    sent a signal only a thread that waits for it is told.
    """
    for number in LEFT_TO_THE_RANK:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_meet, args=(os.getppid(),), daemon=True).start()


def _meet(rank: int) -> None:
    while True:
        told = signal.sigwaitinfo([signal.SIGTERM])
        if told.si_pid == rank or os.getppid() != rank:
            os._exit(0)
