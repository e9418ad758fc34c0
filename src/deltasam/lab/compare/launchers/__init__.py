"""Where and how many at a time: launchers do the runs of a grid, in this process, in others, or on other machines."""

from __future__ import annotations

from deltasam.errors import UserError
from deltasam.lab.compare.launchers.launcher import (
    Launcher,
    ProgressCallback,
    RunKey,
    RunProgress,
    SequentialLauncher,
    run_name,
)

__all__ = ["Launcher", "ProgressCallback", "RunKey", "RunProgress", "SequentialLauncher", "find_launcher", "run_name"]


def find_launcher(name: str, workers: int | None, *, gpu: bool) -> Launcher:
    """The launcher of a name.

    Args:
        name: ``local`` or ``ray``.
        workers: Runs at a time; None: one with ``local``, as many as the cluster has room for with ``ray``.
        gpu: Whether each run is to have a GPU of the cluster.

    Raises:
        UserError: There is no such launcher, or its library is missing.
    """
    if name == "ray":
        from deltasam.lab.compare.launchers.ray_cluster import RayCluster

        return RayCluster(workers, gpu=gpu)
    if name != "local":
        raise UserError(f"--launcher {name}: must be local or ray")
    if workers in (None, 1):
        return SequentialLauncher()
    from deltasam.lab.compare.launchers.worker_pool import WorkerPool

    return WorkerPool(workers)
