"""`python -m core.evals RUN NAME FOLDER [STEP]`: an evaluation of a run's teacher, written beside the run's own."""

import json
import sys
from pathlib import Path

from core.checkpoint import load_teacher, teacher_steps
from core.evals import EVALS
from core.run_folder import check_run, replace_text


def main(run: Path, name: str, folder: Path, step: int | None = None) -> dict[str, float]:
    """Numbers of the newest teacher, or of that of `step`; also in RUN/evals/<step>/<name>.json.

    Raises ValueError for a run, an evaluation or a step that there is not.
    """
    check_run(run)
    if name not in EVALS:
        raise ValueError(f"no evaluation called {name!r}; known: {', '.join(EVALS)}")
    known = teacher_steps(run)
    if step is None and known:
        step = known[-1]
    if step not in known:
        raise ValueError(f"{run} exported no teacher of step {step}; there are: {', '.join(map(str, known)) or 'none'}")
    backbone, _ = load_teacher(f"{run}@{step}")
    numbers = EVALS[name](backbone.eval(), folder)
    replace_text(run / "evals" / str(step) / f"{name}.json", json.dumps(numbers, indent=2) + "\n")
    return numbers


if __name__ == "__main__":
    if not 4 <= len(sys.argv) <= 5:
        raise SystemExit(f"usage: python -m core.evals RUN {'|'.join(EVALS)} FOLDER [STEP]")
    try:
        print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
