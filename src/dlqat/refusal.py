# SPDX-License-Identifier: Apache-2.0
"""Bad input: one clear line (what, where, what to do), exit code 2, before any work."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from dlqat.quiet import hush


class Refusal(Exception):
    """Input that the tool will not work on. The message is all that the user sees: say what to do."""


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a console-script entry point: a Refusal becomes one line on stderr and exit code 2."""

    def run() -> None:
        hush()
        try:
            main()
        except Refusal as refusal:
            print(f"error: {refusal}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(130)

    return run


def unwind_when_terminated() -> None:
    """SIGTERM (a time-out, a CI that cancels) ends the command as Ctrl-C does: temporary copies and processes go."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
