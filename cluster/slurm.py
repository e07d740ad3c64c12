"""Jobs on a Slurm cluster, as sbatch scripts.

A job that is preempted, or whose time is nearly up, is told so (SIGUSR1), saves, leaves and goes back into the queue by
itself; it then continues from its newest checkpoint.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.commands import ask
from cluster.job import Job, exports, start_line
from cluster.launcher import Handle
from cluster.states import State, Status, of_exit
from cluster.submission import ENDED, LOG, SCRIPT, ended, last_lines
from cluster.targets import Target

WARNING = 180  # seconds before the time limit; Slurm may be up to 60 late
STATES = {
    "PENDING": State.WAITING,
    "REQUEUED": State.WAITING,
    "REQUEUE_HOLD": State.WAITING,
    "SPECIAL_EXIT": State.WAITING,
    "PREEMPTED": State.WAITING,
    "CONFIGURING": State.WAITING,
    "RUNNING": State.RUNNING,
    "COMPLETING": State.RUNNING,
    "SUSPENDED": State.RUNNING,
    "STOPPED": State.RUNNING,
    "COMPLETED": State.DONE,
    "CANCELLED": State.CANCELLED,
    "OUT_OF_MEMORY": State.OUT_OF_MEMORY,
    "NODE_FAIL": State.NODE_FAILED,
    "BOOT_FAIL": State.NODE_FAILED,
    "TIMEOUT": State.OUT_OF_TIME,
    "DEADLINE": State.OUT_OF_TIME,
    "FAILED": State.FAILED,
    "REVOKED": State.CANCELLED,
}
TOLD = "gramscope: told to save and leave"
STOPPED = (  # what the script, srun and slurmstepd write, and what it means; the first that is there says it best
    (re.compile(r"Node failure on (\S+)"), "node {} failed"),
    (re.compile(r"CANCELLED AT \S+ DUE TO NODE FAILURE"), "a node failed"),
    (re.compile(r"CANCELLED AT \S+ DUE TO PREEMPTION"), "preempted"),
    (re.compile(r"CANCELLED AT \S+ DUE TO TIME LIMIT"), "its time was up"),
    (re.compile(TOLD), "preempted, or its time was nearly up"),
    (re.compile(r"CANCELLED AT \S+ DUE TO JOB REQUEUE"), "requeued"),
)
END = re.compile(r"\*\*\* JOB \S+ ON .*\*\*\*")  # slurmstepd's last words of a start
BODY = """\
{setup}
rm -f {ended}
export GRAMSCOPE_HEAD=${{SLURM_JOB_NODELIST:+$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}}

again=""
trap 'again=1; echo "{told}"; kill -USR1 $child 2>/dev/null' USR1
trap 'kill -TERM $child 2>/dev/null' TERM
srun --kill-on-bad-exit=1 {line} &
child=$!
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done  # a signal ends a wait, not the job
if [ -n "$again" ]; then  # whatever the status: torchrun has one of its own after a signal
    scontrol requeue "$SLURM_JOB_ID" && sleep 60  # Slurm ends this script
fi
echo $status > {ended}
exit $status
"""


def render(job: Job, target: Target, place: Path, after: tuple[Mapping[str, str], ...] = ()) -> str:
    """The batch script."""
    words = [f"--job-name={job.name}", f"--nodes={job.nodes}", "--ntasks-per-node=1"]
    words += [f"--partition={target.partition}"] if target.partition else []
    words += [f"--account={target.account}"] if target.account else []
    words += [f"--gpus-per-node={job.gpus}"] if job.gpus else []
    words += [f"--cpus-per-task={job.cpus * job.processes}"] if job.cpus else []
    words += [f"--mem={job.memory}"] if job.memory else []
    words += [f"--time={_time(job.minutes)}"] if job.minutes else []
    words += (
        [f"--dependency=afterok:{':'.join(each['id'] for each in after)}", "--kill-on-invalid-dep=yes"] if after else []
    )
    words += ["--requeue", "--open-mode=append", f"--signal=B:USR1@{WARNING}", f"--output={place / LOG}"]
    words += [*target.options]
    head = target.address or "$GRAMSCOPE_HEAD"
    line = start_line(
        job,
        python=target.interpreter,
        endpoint=f"{head}:$(({target.port} + SLURM_JOB_ID % 1000))",
        address=target.address,
    )
    setup = "\n".join([*exports(job, target.environment), *target.before])
    comments = "\n".join(f"#SBATCH {shlex.quote(word) if ' ' in word else word}" for word in words)
    return f"#!/bin/bash\n{comments}\n\n" + BODY.format(
        setup=setup, told=TOLD, ended=shlex.quote(str(place / ENDED)), line=line
    )


def _time(minutes: int) -> str:
    return f"{minutes // 1440}-{minutes % 1440 // 60:02d}:{minutes % 60:02d}:00"


def submit(job: Job, target: Target, place: Path, text: str) -> Handle:
    """sbatch. The number that Slurm gives is the job's for good, however often it is requeued."""
    number = ask(["sbatch", "--parsable"], text=text).strip().partition(";")[0]
    return {"id": number, "place": str(place)}


def status(handle: Mapping[str, str], place: Path) -> Status:
    """By scontrol while Slurm remembers the job, by sacct afterwards, else by what the job left."""
    try:
        told = facts(ask(["scontrol", "--oneliner", "show", "job", handle["id"]]))
    except RuntimeError as error:
        if "Invalid job id" not in str(error):
            return Status(State.UNKNOWN, str(error))
        return _forgotten(handle, place)
    state, restarts = STATES.get(told["JobState"], State.UNKNOWN), int(told.get("Restarts", 0))
    reason = told.get("Reason", "None")
    if state == State.FAILED:  # Slurm without cgroups does not know why a process was killed
        code, _, number = told.get("ExitCode", "1:0").partition(":")
        found = of_exit(int(code) or 128 + int(number), last_lines(place / LOG, 40))
        state = found.state if found.state == State.OUT_OF_MEMORY else state
        reason = found.reason if reason == "None" else reason
    reason = "" if reason == "None" else reason
    if state == State.WAITING and restarts:  # why it was stopped is what people want to know
        reason = "; ".join(filter(None, [happened(last_lines(place / LOG, 400)), reason]))
    return Status(state, reason, restarts)


def happened(log: str) -> str:
    """Why Slurm stopped a job that it will start again, by what the last start left in its log."""
    ends = [0, *(match.end() for match in END.finditer(log))]
    for part in (log[ends[-1] :], log[ends[-2] :] if len(ends) > 1 else ""):
        for pattern, words in STOPPED:
            if match := pattern.search(part):
                return words.format(*match.groups())
    return "stopped"


def facts(line: str) -> dict[str, str]:
    """What scontrol says of a job, by name; values with blanks are cut at the first."""
    return dict(re.findall(r"(\S+?)=(\S*)", line))


def _forgotten(handle: Mapping[str, str], place: Path) -> Status:
    """A job that the controller has dropped from its memory."""
    try:
        said = ask(["sacct", "-j", handle["id"], "-X", "-n", "-P", "-o", "State,Reason"]).strip()
    except RuntimeError:
        said = ""  # no accounting
    if said:
        state, _, reason = said.splitlines()[-1].partition("|")
        return Status(STATES.get(state.split()[0], State.UNKNOWN), "" if reason == "None" else reason)
    code = ended(place)
    if code is None:
        return Status(State.UNKNOWN, "Slurm no longer knows the job, and it left no exit status")
    return of_exit(code, last_lines(place / LOG, 40))


def logs(handle: Mapping[str, str], place: Path, lines: int) -> str:
    return last_lines(place / LOG, lines)


def cancel(handle: Mapping[str, str], place: Path) -> None:
    """A job that runs is told to save and leave, and has as long as Slurm's KillWait for that."""
    ask(["scancel", handle["id"]])


def requeue(handle: Mapping[str, str], place: Path) -> Handle:
    """Back into the queue, by the same number."""
    ask(["scontrol", "requeue", handle["id"]])
    return dict(handle)


def render_array(jobs: Sequence[Job], target: Target, places: Sequence[Path], *, at_once: int = 0) -> str:
    """The batch script of a sweep as one array: task i does what places[i] has as its script, and prints where that
    one would. at_once: how many run at a time; 0: as many as there is room for. Raises ValueError for jobs that want
    different machines."""
    wanted = {(job.nodes, job.processes, job.gpus, job.cpus, job.memory, job.minutes) for job in jobs}
    if len(wanted) != 1:
        raise ValueError("the jobs of an array want the same machines; submit them one by one")
    comments = [line for line in render(jobs[0], target, places[0]).splitlines() if line.startswith("#SBATCH")]
    comments = [line for line in comments if not line.startswith("#SBATCH --output=")]
    limit = f"%{at_once}" if at_once else ""
    cases = "\n".join(
        f"{index}) exec bash {shlex.quote(str(place / SCRIPT))} >> {shlex.quote(str(place / LOG))} 2>&1 ;;"
        for index, place in enumerate(places)
    )
    return "\n".join(
        [
            "#!/bin/bash",
            *comments,
            f"#SBATCH --array=0-{len(jobs) - 1}{limit}",
            "#SBATCH --output=/dev/null",
            "",
            'case "$SLURM_ARRAY_TASK_ID" in',
            cases,
            "esac\n",
        ]
    )


def submit_array(places: Sequence[Path], text: str) -> list[Handle]:
    """sbatch of such a script: a handle a task."""
    number = ask(["sbatch", "--parsable"], text=text).strip().partition(";")[0]
    return [{"id": f"{number}_{index}", "place": str(place)} for index, place in enumerate(places)]
