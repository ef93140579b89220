"""^C and SIGTERM as a question to answer at a good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Impatient(BaseException):
    """A second ^C or SIGTERM. Lightning would turn a KeyboardInterrupt into exit code 1."""


@contextmanager
def watched_signals() -> Iterator[list[int]]:
    """Note the first ^C or SIGTERM in the list instead of dying of it; a second one interrupts at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, _: FrameType | None) -> None:
        if asked:
            raise _Impatient
        asked.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield asked
    except _Impatient:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
