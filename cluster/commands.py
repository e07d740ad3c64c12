"""Clients of engines, asked with patience that ends."""

import subprocess
from collections.abc import Sequence

PATIENCE = 30  # seconds: squeue and its kin wait for ever where their server is gone


def ask(words: Sequence[str], *, text: str | None = None, patience: float = PATIENCE) -> str:
    """What a client prints. Raises RuntimeError, with its own words, where it fails, is missing or does not answer."""
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=patience)
    except FileNotFoundError:
        raise RuntimeError(f"{words[0]} is not installed on this machine") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{words[0]} did not answer within {patience:g} s; is its server up?") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"status {done.returncode}"
        raise RuntimeError(f"{words[0]}: {said}")
    return done.stdout
