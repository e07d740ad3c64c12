"""From a configuration to a job in a queue, and back from a run's folder.

    submission = launch(recipe("nano_pretrain"), find_target("slurm:gpu"), nodes=2)
    submission.status()
    submissions(folder)      # from another notebook, tomorrow

The doctor looks first; the code is copied into the run's folder, so that a job that waits is not changed by an edit.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import core
from cluster import Job, Submission, Target, submissions, submit
from cluster.job import job_name
from cluster.snapshot import copy_code
from cluster.targets import GPUS, RESOURCES
from core.config import Config
from core.cost import training_cost
from core.doctor import Finding, Machine, check, report
from core.doctor.case import Gpu
from core.run_folder import check_run, create, new_folder

LATER = {  # rules on what an earlier stage leaves
    "init-not-found",
    "init-architecture",
    "init-heads",
    "init-no-heads",
    "gram-teacher-not-found",
    "gram-teacher-architecture",
    "gram-stage-order",
}
MFU = 0.35  # share of the peak that large runs of this kind reach in bf16; ours were never run at that size
MEMORY = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}  # GiB


class Refused(ValueError):
    """The doctor marks something red; `findings` has all it found."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        red = [finding for finding in findings if finding.level == "red"]
        super().__init__("not submitted; the doctor objects:\n" + report(red))


@dataclass(frozen=True)
class Plan:
    """A run before it is submitted: its configuration, folder and job, and what the doctor found."""

    config: Config
    folder: Path
    job: Job
    findings: list[Finding]

    @property
    def red(self) -> list[Finding]:
        """What has to be mended first."""
        return [finding for finding in self.findings if finding.level == "red"]

    def cost_words(self, target: Target) -> str:
        """What it costs, in words; empty where that is measured and not computed (frozen teachers)."""
        try:
            cost = training_cost(self.config, self.job.world)
        except ValueError:
            return ""
        words = (
            f"{cost.parameters / 1e6:,.0f} M parameters; {cost.patches / 1e6:.3g} M patches and "
            f"{cost.flops / 1e12:,.3g} TFLOP a step; a process holds {cost.models_gib:.3g} GiB of models and about "
            f"{cost.activations_gib:.3g} GiB of activations; a checkpoint has {cost.checkpoint_gib:.3g} GiB"
        )
        if not target.gpu:
            return words
        tflops = GPUS[target.gpu][2]
        hours = cost.hours(tflops, MFU)
        return (
            f"{words}; {cost.steps:,} steps on {self.job.world} {target.gpu} at {MFU:.0%} of {tflops:g} TFLOP/s take "
            f"{hours:,.3g} hours"
        )


def plan(config: Config, target: Target, *, folder: Path | None = None, later: bool = False, **resources: Any) -> Plan:
    """What `launch` would submit; nothing is made.

    later: earlier stages are still to run, so what they will leave is not missed. resources: nodes, processes, gpus,
    cpus, memory, minutes, in place of the target's. Raises ValueError for others.
    """
    folder = (Path("runs") / f"{config.name}-new" if folder is None else folder).absolute()
    job = job_for(folder, config, target, **resources)
    found = check(config, world=job.world, folder=folder, machine=machine_of(target, job, folder))
    return Plan(config, folder, job, [each for each in found if not (later and each.rule in LATER)])


def job_for(folder: Path, config: Config, target: Target, **resources: Any) -> Job:
    """The job that trains the run in a folder, from its newest checkpoint or from the start."""
    if unknown := sorted(set(resources) - set(RESOURCES)):
        raise ValueError(f"no resource {', '.join(unknown)}; there are: {', '.join(RESOURCES)}")
    wanted = target.resources | {name: value for name, value in resources.items() if value is not None}
    if wanted["gpus"] and wanted["processes"] == 1:
        wanted["processes"] = wanted["gpus"]  # a process a GPU
    return Job(
        name=job_name(config.name),
        folder=folder,
        module="core.train",
        arguments=(str(folder),),
        environment={"PYTHONPATH": str(folder / "code" / "source")},
        **wanted,
    )


def machine_of(target: Target, job: Job, folder: Path) -> Machine:
    """A node of the target as the doctor sees it; what the target does not say is as here."""
    here = Machine.here(folder)
    gpus: tuple[Gpu, ...] = here.gpus
    if target.gpu and job.gpus:
        gpus = (Gpu(target.gpu, *GPUS[target.gpu][:2]),) * job.gpus
    elif target.launcher != "local":
        gpus = ()
    memory = float(job.memory[:-1]) * MEMORY[job.memory[-1]] if job.memory else here.memory_gib
    return replace(here, cpus=job.cpus * job.processes or here.cpus, memory_gib=memory, gpus=gpus)


def launch(
    config: Config,
    target: Target,
    *,
    folder: Path | None = None,
    after: Sequence[Submission] = (),
    force: bool = False,
    **resources: Any,
) -> Submission:
    """Makes the run's folder and hands its job to the target; returns at once.

    after: submissions that have to end well first. Raises Refused for what the doctor marks red unless `force`,
    FileExistsError for a folder that holds something else, RuntimeError where the engine refuses and ValueError where
    it cannot do what is wanted; then no folder is left behind.
    """
    planned = plan(config, target, folder=folder, later=bool(after), **resources)
    if planned.red and not force:
        raise Refused(planned.findings)
    folder = create(config, (new_folder(config.name) if folder is None else folder).absolute())
    copy_code([Path(core.__file__).parent], folder / "code" / "source")
    try:
        return submit(job_for(folder, config, target, **resources), target, after=after)
    except (RuntimeError, ValueError):
        shutil.rmtree(folder)  # all in it was made here; left behind, it would refuse the next attempt
        raise


def go_on(folder: Path, target: Target | None = None, **resources: Any) -> Submission:
    """Submits a run that exists once more, on the target of its last submission if none is named: it goes on from its
    newest checkpoint. Raises ValueError while an earlier submission waits or runs."""
    config, before = check_run(folder), submissions(folder)
    for each in before:
        state = each.status().state
        if not state.is_over and state != "unknown":
            raise ValueError(f"submission {each.number} of {folder.name} is {state}; cancel it first, or requeue it")
    if target is None:
        if not before:
            raise ValueError(f"{folder.name} was never submitted; name a target")
        target = before[-1].target
        resources = before[-1].job.resources | resources
    if not (folder / "code" / "source").exists():
        copy_code([Path(core.__file__).parent], folder / "code" / "source")
    return submit(job_for(folder.absolute(), config, target, **resources), target)


def chain(stages: Sequence[tuple[Config, Path]], target: Target, **resources: Any) -> list[Submission]:
    """Stages that continue each other, each waiting for the one before: pretrain, gram, highres.

    What a stage begins with is named in its configuration, as init.student and gram.teacher with the folder of the one
    before. Nothing is submitted when the doctor objects to any of them.
    """
    for number, (config, folder) in enumerate(stages):
        planned = plan(config, target, folder=folder, later=number > 0, **resources)
        if planned.red:
            raise Refused(planned.findings)
    made: list[Submission] = []
    for config, folder in stages:
        made.append(launch(config, target, folder=folder, after=made[-1:], **resources))
    return made


def evaluate(
    run: Path, name: str, data: Path, target: Target, *, after: Sequence[Submission] = (), **resources: Any
) -> Submission:
    """Submits an evaluation (an entry of `core.evals.EVALS`) of a run's newest teacher, as the last link of a chain."""
    job = job_for(run.absolute(), check_run(run), target, **resources)
    arguments = (str(run.absolute()), name, str(data.absolute()))
    alone = replace(job, module="core.evals", arguments=arguments, nodes=1, processes=1, gpus=min(job.gpus, 1))
    return submit(alone, target, after=after)


def fork(run: Path, step: int, *, steps: int | None = None, **changes: Any) -> Config:
    """The configuration of a new run that begins with a run's teacher of `step`; its counts start at 0.

    changes: parts of the configuration that replace the run's, as optim=.... Raises ValueError for a step without a
    teacher.
    """
    from core.checkpoint import teacher_steps

    config, known = check_run(run), teacher_steps(run)
    if step not in known:
        raise ValueError(f"{run.name} exported no teacher of step {step}; there are: {', '.join(map(str, known))}")
    name = re.sub(r"_from_\d+$", "", config.name) + f"_from_{step}"
    start = replace(config.init, student=f"{run.absolute()}@{step}", narrow="")
    return replace(config, name=name, init=start, steps=steps or config.steps, **changes)
