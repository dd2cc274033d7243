"""Devices by the names that people give them, and their memory."""

import torch

from symprune.base.errors import UserError

ALL_GPUS = "auto"  # a device: the layers spread over all GPUs by accelerate's device map


def device_type(device: str) -> str:
    """ "cpu", "cuda", ...: where a model loaded on that device computes."""
    if device == ALL_GPUS:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device).type


def free_memory(device: torch.device | str) -> int:
    """Bytes free on a device ("auto": on all GPUs together)."""
    import psutil

    if device_type(str(device)) != "cuda":
        return psutil.virtual_memory().available
    gpus = range(torch.cuda.device_count()) if device == ALL_GPUS else [device]
    return sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)


def require_device(device: str) -> None:
    if device == ALL_GPUS:
        return
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"cannot use the device {device!r} here: take cpu, or cuda or auto on a machine with a GPU"
        ) from error


def memory_of(device: torch.device | str) -> int:
    """Bytes of a device, free or not."""
    import psutil

    return (
        torch.cuda.mem_get_info(device)[1]
        if torch.device(device).type == "cuda"
        else psutil.virtual_memory().total
    )


def require_memory(needed: int, device: torch.device | str, what: str, way_out: str) -> None:
    """Raise UserError if a device has fewer bytes free: what (a plural) needs them, and the way out."""
    if needed > (free := free_memory(device)):
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on {device}: {way_out}"
        )
