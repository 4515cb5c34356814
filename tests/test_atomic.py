# SPDX-License-Identifier: Apache-2.0
"""Files appear whole, also when two processes write the same one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dlqat import atomic


def test_two_at_a_time(tmp_path: Path) -> None:
    """Two dlqat-checks of one artifact: neither stumbles over the other's draft, and nothing is left of either."""
    target = tmp_path / "report.json"
    program = (
        "import sys; from pathlib import Path; from dlqat import atomic\n"
        f"for _ in range(400): atomic.text(Path({str(target)!r}), sys.argv[1] * 5000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, letter]) for letter in "ab"]
    assert [w.wait(100) for w in writers] == [0, 0]
    assert target.read_text() in ("a" * 5000, "b" * 5000)
    assert list(tmp_path.iterdir()) == [target]


def test_writable(tmp_path: Path) -> None:
    """A folder that is not there yet can be made; a file is no folder."""
    assert atomic.writable(tmp_path / "new" / "newer")
    (tmp_path / "file").touch()
    assert not atomic.writable(tmp_path / "file")
    assert not atomic.writable(tmp_path / "file" / "below")
