"""The subcommand `gramscope share`."""

from pathlib import Path
from typing import Annotated

import tyro


def share(
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    to: Path,
    steps: tuple[int, ...] = (),
    photos: tuple[Path, ...] = (),
    size: int | None = None,
    licence: str = "",
) -> None:
    """Make a run small enough to give away: what the views read, without weights and training photographs.

    Args:
        run: Folder of the run.
        to: New folder for the small one.
        steps: Only these; without them all that there are.
        photos: Pictures to look at in place of the run's own probes, through the teachers that it kept.
        size: Long side in pixels at which they are looked at; without it their own.
        licence: Under which what these pictures look like to the model may be passed on.
    """
    from workbench.images import BadImage
    from workbench.sharing import share_run

    try:
        folder = share_run(run, to, steps=steps or None, photos=photos, size=size, licence=licence)
    except (OSError, ValueError, BadImage) as error:
        raise SystemExit(str(error)) from None
    files = [path for path in folder.rglob("*") if path.is_file()]
    print(f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
