"""The console command `gramscope`: one entry in COMMANDS a subcommand.

A command imports what it needs inside, so that help and refusals come at once and not after torch is loaded.
"""

import errno
import ipaddress
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import tyro

from apps import distilling, launching, sharing, training


def app(
    port: int = 7860,
    host: str = "127.0.0.1",
    weights: str | None = None,
    open_browser: Annotated[bool, tyro.conf.arg(name="open")] = True,
) -> None:
    """Explore the dense features of a photograph in the browser.

    Args:
        port: Port to listen on.
        host: Address to listen on; anything but this computer's own (127.0.0.1) lets the network in.
        weights: Published name, file or folder; without it the weights that come with the project.
        open_browser: Show the page in a browser window.
    """
    _check_address(host, port)
    from apps.explorer.app import serve

    serve(host=host, port=port, weights=weights, open_browser=open_browser)


def monitor(
    runs: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUNS")] = None,
    port: int = 7870,
    host: str = "127.0.0.1",
    open_browser: Annotated[bool, tyro.conf.arg(name="open")] = True,
) -> None:
    """Watch runs in the browser: what becomes of their dense features, live while they train.

    Args:
        runs: Folder of runs, or one run; without it the folder `runs` here, or else runs that come with Gramscope.
        port: Port to listen on.
        host: Address to listen on; anything but this computer's own (127.0.0.1) lets the network in.
        open_browser: Show the page in a browser window.
    """
    _check_address(host, port)
    from apps.monitor.app import serve
    from workbench.runs import SHIPPED

    if runs is None:
        runs = Path("runs") if Path("runs").is_dir() else SHIPPED
        print(f"watching {runs}" if runs != SHIPPED else "no folder runs here: showing those that come with Gramscope")
    if not runs.is_dir():
        raise SystemExit(f"{runs} is no folder; name one that holds runs, as gramscope train makes them")

    serve(runs, host=host, port=port, open_browser=open_browser)


def version() -> None:
    """Print the version and leave."""
    print(f"gramscope {installed_version('gramscope')}")


COMMANDS: dict[str, Callable[..., None]] = {
    "app": app,
    "monitor": monitor,
    "train": training.train,
    "resume": training.resume,
    "launch": launching.launch,
    "status": launching.status,
    "logs": launching.logs,
    "cancel": launching.cancel,
    "requeue": launching.requeue,
    "distill": distilling.distill,
    "doctor": training.doctor,
    "replay": training.replay,
    "export": training.export,
    "share": sharing.share,
    "version": version,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the subcommand named on the command line; leaves with a sentence when it cannot."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        arguments = ["version"]
    if arguments and arguments[0] in training.OVERRIDES:
        training.run_with_overrides(arguments[0], arguments[1:])
        return
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="gramscope",
        description="An open workbench for looking inside self-supervised vision models.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _check_address(host: str, port: int) -> None:
    """Ends the program when nothing can listen there; warns when others could reach it."""
    if not 1 <= port <= 65535:
        raise SystemExit(f"port {port} does not exist; choose one from 1024 to 65535")
    nowhere = f"this computer has no address {host!r}; use --host 127.0.0.1"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise SystemExit(nowhere) from None
    if problem := _cannot_listen(family, host, port):
        if problem.errno == errno.EADDRNOTAVAIL:
            raise SystemExit(nowhere)
        free = next((p for p in range(port + 1, port + 100) if not _cannot_listen(family, host, p)), None)
        advice = f"; try --port {free}" if free else ""
        raise SystemExit(f"cannot listen on port {port} of {host}: {problem.strerror}{advice}")
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        print(
            f"warning: {host} is open to your network and there is no password; "
            "whoever reaches this computer can use the app. --host 127.0.0.1 keeps it to yourself.",
            file=sys.stderr,
        )


def _cannot_listen(family: int, host: str, port: int) -> OSError | None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just left is free
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            return error if isinstance(error, OSError) else OSError(errno.EINVAL, "no such port")
    return None


if __name__ == "__main__":
    main()
