"""The device that a run computes on: any that torch knows, found and tried before it is used.

Nothing here, or elsewhere, asks for CUDA by name where torch has a general way: a device's module
(`torch.cuda`, `torch.xpu`, ...) gives its generators, its memory and its name.
"""

import os
from typing import Any

import torch

from pgtg.errors import ConfigError, MissingResourceError
from pgtg.runtime import distributed

ASKED_FOR = ("mps",)  # accelerators that `auto` leaves alone: small models are no faster there


def pick_device(name: str) -> torch.device:
    """A device by name, tried; "auto" takes a GPU where there is one.

    Of several processes each takes the one that the launcher means for it.

    Raises:
        MissingResourceError: Torch does not know it, or it cannot be used here.
    """
    own = distributed.device()
    if own is not None and name in ("auto", torch.device(own).type):
        name = own
    elif name == "auto":
        name = _offered()
    try:
        device = torch.device(name)
    except RuntimeError as error:  # it lists some twenty types
        raise MissingResourceError(f"device={name}: torch knows no such device") from error
    try:
        torch.ones(2, device=device).sum().item()  # the type "meta" has no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        first = str(error).splitlines()[0]
        raise MissingResourceError(f"device={name} cannot be used here: {first}") from error
    return device


def _offered() -> str:
    """The machine's accelerator; else the CPU."""
    available = torch.accelerator.is_available()
    found = torch.accelerator.current_accelerator() if available else None
    return "cpu" if found is None or found.type in ASKED_FOR else found.type


def device_name(device: torch.device) -> str:
    """What tells this device from others that round differently, e.g. "NVIDIA H100"."""
    name = getattr(_module(device), "get_device_name", None)
    return device.type if name is None else str(name(device))


def free_cached_memory(device: torch.device) -> None:
    """Give back what torch keeps of the device's memory for later tensors."""
    empty = getattr(_module(device), "empty_cache", None)
    if empty is not None:
        empty()


def memory_of(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of an accelerator's own memory; None for those that do not tell."""
    ask = getattr(_module(device), "mem_get_info", None)
    return None if ask is None else ask(device)


def require_float64(device: torch.device) -> None:
    """Tokens are drawn, and ranks counted, in float64.

    Raises:
        ConfigError: The device lacks it, as mps does.
    """
    try:
        torch.ones(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError) as error:
        raise ConfigError(
            f"device={device.type} has no float64, in which tokens are drawn: use device=cpu"
        ) from error


def set_arithmetic(device: torch.device, *, tf32: bool, deterministic: bool) -> str:
    """How a device computes from here on; the CPU's arithmetic is always the same.

    Args:
        tf32: CUDA: float32 products keep 10 bits of mantissa, at several times the speed.
        deterministic: Only algorithms whose results repeat to the bit; where torch has none it
            warns, and names the operator.

    Returns:
        What was set, in words; empty on a CPU.
    """
    if device.type == "cpu":
        return ""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    said = f"{device_name(device)}: {'' if deterministic else 'non'}deterministic algorithms"
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        said += f", float32 products in {'TF32 (tf32=false turns it off)' if tf32 else 'float32'}"
    return said


def _module(device: torch.device) -> Any:
    return None if device.type == "cpu" else torch.get_device_module(device)
