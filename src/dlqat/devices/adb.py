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
from collections.abc import Mapping, Sequence

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


STATES = {
    "unauthorized": "unlock the phone and allow USB debugging for this computer",
    "authorizing": "unlock the phone and allow USB debugging for this computer",
    "offline": "plug it in again, or run adb reconnect",
    "no permissions": "this user may not open it: add a udev rule for it (Android's page Run apps on a hardware device), plug it in again",
}
"""What helps, by the state in which adb sees a phone that is not ready."""


def serial() -> str:
    """$ANDROID_SERIAL, or the one phone that is ready. DeviceFailure, with the serials and states that adb sees, if there is
    none, or more than one."""
    lines = run([client() or "adb", "devices"]).splitlines()
    seen = {name.strip(): state.strip() for name, _, state in (line.partition("\t") for line in lines) if state}
    ready = [name for name, state in seen.items() if state == "device"]
    named = os.environ.get("ANDROID_SERIAL")
    if named is not None and named not in ready:
        raise DeviceFailure(
            f"ANDROID_SERIAL is {named}, and adb sees {_listed(seen) or 'no device'}{_advice(seen, named)}"
        )
    if named is None and len(ready) != 1:
        advice = "; set ANDROID_SERIAL to the one that is meant" if ready else _advice(seen, *seen)
        listed = f" ({_listed(seen)})" if seen else ""
        raise DeviceFailure(
            f"adb sees {len(ready)} ready devices{listed}{advice or '; connect one with USB debugging on'}"
        )
    return named or ready[0]


def _listed(seen: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {state.partition(';')[0].partition(' (')[0]}" for name, state in seen.items())


def _advice(seen: Mapping[str, str], *names: str) -> str:
    """What helps with these phones, each thing once."""
    states = [seen.get(name, "") for name in names]
    found = dict.fromkeys(text for state in states for known, text in STATES.items() if state.startswith(known))
    return "".join(f"; {text}" for text in found)


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
