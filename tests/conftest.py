from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell's job in the background ignores Ctrl-C, and so would everything that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
