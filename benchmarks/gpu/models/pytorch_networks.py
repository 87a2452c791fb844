"""PyTorch's networks, with random weights: the same for the bare loop and for the worker.

ResNet50 is v1.5 (the stride is in the 3x3 convolution), as torchvision has it. It is written here
because torchvision is not everywhere, and what is measured must not depend on that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

# Blocks and channels of the four stages.
_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
_EXPANSION = 4
# Of each block's last normalization: without training, sums over 16 blocks would leave float16.
_LAST_SCALE = 0.25


def device() -> torch.device:
    """The worker's card, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(name: str, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of rows as clients send them, float32 on the device, to float32 there."""
    torch.manual_seed(0)
    # Both sides alike: of every shape the fastest algorithm is found at its first batch.
    torch.backends.cudnn.benchmark = True
    dtype = getattr(torch, precision)
    network = _resnet50() if name == "resnet50" else _mlp()
    network = network.eval().to(device(), dtype)
    if name == "resnet50":
        network = network.to(memory_format=torch.channels_last)

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            if name == "resnet50":
                # No copy: height, width and channels in this order are channels_last.
                x = x.permute(0, 3, 1, 2)
            y: torch.Tensor = network(x.to(dtype)).float()
            return y

    return call


class PytorchLoop:
    """See ``bare_loop.Loop``."""

    def __init__(self, name: str, precision: str, **_: Any) -> None:
        self._device = device()
        self.call = build(name, precision)

    def put(self, host: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(host).to(self._device)

    def fetch(self, y: torch.Tensor) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = y.cpu().numpy()
        return array

    def synchronize(self, y: torch.Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def limit_memory(fraction: float) -> None:
    """Has this process use no more of the card than such a share."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(fraction)


def versions() -> dict[str, str]:
    """What PyTorch is, and what it was built with; ``device`` is the card that it sees."""
    found = {"version": str(torch.__version__), "cuda": str(torch.version.cuda)}
    found["cudnn"] = str(torch.backends.cudnn.version())
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name(0)
    return found


class _Block(nn.Module):  # type: ignore[misc]
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        out = channels * _EXPANSION
        self.body = nn.Sequential(
            *_convolution(channels_in, channels, 1, 1),
            nn.ReLU(inplace=True),
            *_convolution(channels, channels, 3, stride),
            nn.ReLU(inplace=True),
            *_convolution(channels, out, 1, 1),
        )
        nn.init.constant_(self.body[-1].weight, _LAST_SCALE)
        same = stride == 1 and channels_in == out
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(*_convolution(channels_in, out, 1, stride))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(self.body(x) + self.shortcut(x))


def _convolution(channels_in: int, channels: int, size: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    return [convolution, nn.BatchNorm2d(channels)]


def _resnet50() -> nn.Module:
    layers = [*_convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels_in = 64
    for stage, (blocks, channels) in enumerate(_STAGES):
        for block in range(blocks):
            layers.append(_Block(channels_in, channels, 2 if stage and not block else 1))
            channels_in = channels * _EXPANSION
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels_in, 1000)
    )


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
