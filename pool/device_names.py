"""Which device a name of the configuration means: by index or by UUID, in CUDA's forms."""

from __future__ import annotations

import re
from collections.abc import Iterable

from batchyard.pool.inventory import Visible, VisibleDevice
from batchyard.wire.errors import ConfigurationError, DeviceAbsent

_INDEX = re.compile(r"gpu:(0|[1-9][0-9]{0,8})")
_UUID = re.compile(r"(GPU|MIG)-\S+")
_DEVICE_FORMS = (
    'write "auto" (every visible GPU, else the CPU), "cpu", "gpu:N", a GPU UUID ("GPU-…", or its '
    'beginning) or a MIG UUID ("MIG-…")'
)


def find_device(name: str, visible: Visible) -> VisibleDevice:
    """The visible device that a group names by index, or by UUID.

    As in CUDA, the beginning of a card's UUID is enough where no other card's begins so. Raises
    ConfigurationError, DeviceAbsent where the device may still come.
    """
    if name == "gpu":
        raise ConfigurationError(
            'device "gpu" does not say which: write "auto" for every visible GPU, or "gpu:N"'
        )
    match = _INDEX.fullmatch(name)
    if match is None and not _UUID.fullmatch(name):
        raise ConfigurationError(f'device "{name}" is none that could be: {_DEVICE_FORMS}')
    for device in visible.devices:
        if (match and int(match[1]) == device.index) or name in (device.uuid, device.old_name):
            return device
    begun = [d for d in visible.devices if name.startswith("GPU-") and d.uuid.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise ConfigurationError(
            f'device "{name}" could be any of {_join(begun)}: write more of it'
        )
    absent = DeviceAbsent if visible.may_come else ConfigurationError
    if not visible.devices:
        raise absent(f'device "{name}" is not there: no GPU visible ({visible.note})')
    mig = any(device.card == name for device in visible.devices)
    wrong = "has MIG enabled, so only its instances can be used" if mig else "is not there"
    because = f" ({visible.note})" if visible.note else ""
    raise absent(f'device "{name}" {wrong}; visible are {_join(visible.devices)}{because}')


def _join(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
