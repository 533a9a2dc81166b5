"""What a command says that is asked to end before its work has begun: until then nobody else listens to signals."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from hvdlm.launch.environment import launched_as

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)  # nohup and a shell's `&` want some ignored


@contextmanager
def ends_with(text: str) -> Iterator[Callable[[], None]]:
    """One that a signal ends says so on rank 0, until what this yields is called: from then on the work itself listens.

    It ends by that signal as it would have ended anyhow.
    mpirun makes TERM of a Ctrl-C, `hvdlm launch` USR1; neither leaves time for more than a line.
    """
    may_listen = threading.current_thread() is threading.main_thread()
    listening = [number for number in ENDING if may_listen and signal.getsignal(number) in _UNTOUCHED]
    is_root = (launched_as() or (0, 1))[0] == 0

    def end(number: int, frame: object) -> None:
        if is_root:
            what = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, f"hvdlm: {what} {text}\n".encode())
        if number == signal.SIGINT:  # not by an exception, which imports of libraries take for their own
            os._exit(128 + number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    with ExitStack() as stack:
        for number in listening:
            stack.callback(signal.signal, number, signal.signal(number, end))
        yield stack.close
