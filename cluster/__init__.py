"""Jobs on machines: what exists starts `python -m core.train RUN` and its like; nothing here imports the science.

target = find_target("slurm:gpu")
job = Job(name="nano", folder=Path("runs/nano"), module="core.train", arguments=("runs/nano",), nodes=2)
submission = submit(job, target)
submission.status()      # Status(state=State.WAITING, reason="Resources: ...")
submissions(job.folder)  # the same again, from another process or machine
"""

from cluster import kubernetes, local, ray, skypilot, slurm
from cluster.job import Job
from cluster.launcher import Launcher
from cluster.states import State, Status
from cluster.submission import Submission, submissions, submit, sweep
from cluster.targets import Target, find_target

__all__ = [
    "LAUNCHERS",
    "Job",
    "State",
    "Status",
    "Submission",
    "Target",
    "find_target",
    "submissions",
    "submit",
    "sweep",
]

LAUNCHERS: dict[str, Launcher] = {
    "local": local,
    "slurm": slurm,
    "kubernetes": kubernetes,
    "skypilot": skypilot,
    "ray": ray,
}
