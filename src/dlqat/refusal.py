# SPDX-License-Identifier: Apache-2.0
"""Bad input: one clear line (what, where, what to do), exit code 2, before any work.

A disk that is full or a folder that may not be written to is no mistake of ours either: one line, too, and as every
write is atomic, what stood there before still stands.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable

from dlqat.quiet import hush
from dlqat.visible import line

REPORT = "this is a bug in dlqat: please report it, with the lines above and the command"
"""The last line, and exit code 3, of what is neither bad input (2) nor a check that judged and failed (1)."""


class Refusal(Exception):
    """Input that the tool will not work on. The message is all that the user sees: say what to do."""


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a console-script entry point: a Refusal becomes one line on stderr and exit code 2, a bug exit code 3."""

    def run() -> None:
        hush()
        try:
            main()
        except Refusal as refusal:
            print(f"error: {line(refusal)}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(130)
        except Exception as error:  # noqa: BLE001 a bug: it is shown whole, and has an exit code of its own
            if (reason := disk(error)) is None:
                traceback.print_exc()
                print(REPORT, file=sys.stderr)
                sys.exit(3)
            print(f"error: {line(reason)}; nothing that was there before is lost", file=sys.stderr)
            sys.exit(2)

    return run


def unwind_when_terminated() -> None:
    """SIGTERM (a time-out, a CI that cancels) ends the command as Ctrl-C does: temporary copies and processes go."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EISDIR,
    errno.EEXIST,
}


def disk(error: Exception) -> str | None:
    """What the disk refused, if that is what `error` says: an OSError, or safetensors' "... (os error 28)"."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    code = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
    if code is None or code not in _DISK:
        return None
    where = getattr(error, "filename", None)
    return os.strerror(code) + (f": {where}" if where else "")
