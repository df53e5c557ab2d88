"""Ctrl-C in `focaljax`: one line and exit code 130, whatever the program is at.

A KeyboardInterrupt is raised between two steps of Python only: late, while a compiler works, and where it
passes through a callback of one, the process crashes. So a thread waits for the signal and ends the process.
The program asks for it (:func:`leave_at_once`), and so does the package's import where it is the program's
first second. As a library focaljax touches no signal. Until then Ctrl-C is Python's own, with a traceback: so
nothing is imported here that takes long.
"""

import os
import signal
import socket
import sys
import threading
from itertools import pairwise

writing = threading.Lock()  # held for the milliseconds in which a report appears: it is whole or not there
_waiting: list[tuple[threading.Thread, socket.socket]] = []  # at most one; the socket must stay open


def leave_at_once() -> None:
    """Let SIGINT and SIGTERM end the process; one that is ignored (a shell's background job) stays so."""
    if _waiting or threading.current_thread() is not threading.main_thread():
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    waiting = threading.Thread(target=_leave, args=(ours,), daemon=True)
    _waiting.append((waiting, theirs))
    waiting.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: theirs.send(b"\0"))  # for one that comes before the next line
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)


def _leave(signals: socket.socket) -> None:
    signals.recv(1)
    with writing:
        if sys.stdout is not None and sys.stdout.isatty():
            os.write(1, b"\x1b[?25h\n")  # a progress bar hides the cursor
        os.write(2, b"focaljax: interrupted\n")
        os._exit(130)


def _is_the_program() -> bool:
    """Whether this import begins `focaljax`, or `python -m focaljax`, which Python has not yet found."""
    if sys.argv[:1] == ["-m"]:
        return "-mfocaljax" in sys.orig_argv or ("-m", "focaljax") in pairwise(sys.orig_argv)
    return os.path.splitext(os.path.basename([*sys.argv, ""][0]))[0] == "focaljax"


if _is_the_program():
    leave_at_once()
