# SPDX-License-Identifier: Apache-2.0
"""Every device by name. A new device is one file and one line here."""

from __future__ import annotations

from dlqat.devices.device import Device
from dlqat.devices.host_ort import HostOrt
from dlqat.refusal import Refusal

DEVICES: dict[str, Device] = {d.name: d for d in (HostOrt(),)}


def device(name: str) -> Device:
    """The device of that name. Refusal with the known names."""
    if name not in DEVICES:
        raise Refusal(f"device {name!r} is not known; known: {', '.join(DEVICES)}")
    return DEVICES[name]
