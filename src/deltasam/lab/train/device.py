"""Where to compute."""

from __future__ import annotations

import os
import platform

import torch

from deltasam.errors import UserError
from deltasam.lab.train import distributed as processes


def find_device(name: str) -> str:
    """The name of a device that works; ``auto`` is the accelerator where there is one, else the CPU.

    Raises:
        UserError: The device does not exist here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = found.type if found else "cpu"
    if name.startswith("cuda"):
        # With it, and only if it is there when CUDA starts, products give the same bits every time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.empty(0, device=_own(name))
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch built without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); use --device auto") from error
    return name


def own_device(name: str) -> str:
    """The device of this process, which on a machine with several is the GPU of its number there.

    All processes that train together must come to this.

    Raises:
        UserError: There is none for it.
    """
    if processes.count() == 1 or name == "cpu":
        return name
    if name != "cuda":
        raise UserError(f"--device {name}: several processes train on cpu or cuda (each on a GPU of its own)")
    own, there = _own(name), torch.cuda.device_count()
    gpus = processes.gather((platform.node(), str(torch.cuda.get_device_properties(own).uuid)))
    if len(set(gpus)) < len(gpus):
        raise UserError(f"--device cuda: more processes than GPUs, of which there are {there}; start one per GPU")
    torch.cuda.set_device(own)
    return own


def _own(name: str) -> str:
    """The GPU of a process that was started among others; what else there is, as it is."""
    number, there = os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
    if name != "cuda" or number is None or not there:
        return name
    return f"cuda:{int(number) % there}"  # a scheduler may show each process one GPU alone
