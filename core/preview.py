"""The first step of a run before it is started: its loss terms, of its own first batch."""

import torch

from core.config import Config
from core.data.loader import Loader
from core.distill import build
from core.schedules import rates_at
from core.start import load_gram_teacher, start_from
from core.train import seed_step


def first_terms(config: Config) -> dict[str, float]:
    """Every unweighted loss term of step 0 by its name in metrics.jsonl, and `total`, as one process computes them.

    Nothing is learned or written. Takes about as long as a step, and the memory of the run without an optimizer.
    """
    torch.manual_seed(config.seed)
    model = build(config)
    start_from(model, config)
    load_gram_teacher(model, config)
    rates = rates_at(0, config)
    with Loader(config, first_step=0, rank=0, size=1, device="cpu") as loader:
        batch = next(iter(loader))
    seed_step(config.seed, 0, 0)
    model.prepare_gram_teacher(0)
    with torch.no_grad():
        batch, targets = model.look(batch, rates)
        total, terms = model(batch, targets, rates)
    return {name: float(value) for name, value in terms.items()} | {"total": float(total)}
