# SPDX-License-Identifier: Apache-2.0
"""adb: which client, which phone, and one command with a time limit.

The client is the one on PATH or the one in adbutils' wheel. It starts its server by itself, so a server that was
killed is back with the next command; a phone on USB is then found again.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from dlqat.devices.device import DeviceFailure

ABIS = ("arm64-v8a", "x86_64")
SHORT = 30.0
"""Seconds for a command that moves no data."""


def client() -> str | None:
    """adb on PATH, else the one in the wheel of adbutils."""
    if found := shutil.which("adb"):
        return found
    if importlib.util.find_spec("adbutils") is None:
        return None
    import adbutils

    return str(adbutils.adb_path())


def fault() -> str | None:
    """None if there is one phone to talk to, of an ABI that runs 64-bit programs; else the reason why not."""
    if client() is None:
        return "no adb; pip install 'dlqat[devices]' or install Android's platform-tools"
    try:
        abi = shell("getprop ro.product.cpu.abi").strip()
    except DeviceFailure as failure:
        return str(failure)
    return None if abi in ABIS else f"the phone's ABI is {abi or 'unknown'}; {' or '.join(ABIS)} is needed"


def serial() -> str:
    """$ANDROID_SERIAL, or the one phone that is ready. DeviceFailure if there is none, or more than one."""
    found = [line.split() for line in run([client() or "adb", "devices"]).splitlines()[1:] if line.strip()]
    ready = [words[0] for words in found if words[1] == "device"]
    named = os.environ.get("ANDROID_SERIAL")
    if named is not None and named not in ready:
        seen = ", ".join(map(" ".join, found)) or "no device"
        raise DeviceFailure(f"ANDROID_SERIAL is {named}, and adb sees {seen}")
    if named is None and len(ready) != 1:
        raise DeviceFailure(
            f"adb sees {len(ready)} ready devices; connect one with USB debugging on, or set ANDROID_SERIAL"
        )
    return named or ready[0]


def at(phone: str) -> list[str]:
    """The beginning of every command for this phone."""
    return [client() or "adb", "-s", phone]


def shell(command: str) -> str:
    """stdout of a short command on the phone."""
    return run([*at(serial()), "shell", command])


def free_bytes(folder: str) -> int:
    """Free bytes where `folder` of the phone is (df -k: the fourth column of the last line)."""
    shown = shell(f"mkdir -p {folder} && df -k {folder}").split("\n")
    columns = [line.split() for line in shown if line.strip()][-1]
    if len(columns) < 4 or not columns[3].isdigit():
        raise DeviceFailure(f"df on the phone says {' '.join(columns)!r}")
    return int(columns[3]) * 1024


def run(command: Sequence[str], seconds: float | None = None) -> str:
    """stdout of a command. DeviceFailure if it fails or takes longer than `seconds` (SHORT)."""
    shown, seconds = shlex.join(["adb", *command[1:]])[:200], seconds or SHORT
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise DeviceFailure(f"{shown} did not end within {seconds:.0f} s; it was stopped") from None
    except OSError as error:
        raise DeviceFailure(f"{command[0]} cannot be started ({error})") from error
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-200:]
        raise DeviceFailure(f"{shown} failed (exit code {done.returncode}): {words}")
    return done.stdout
