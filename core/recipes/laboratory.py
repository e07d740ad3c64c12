"""Break it and heal it: dense features that decay, and Gram anchoring that brings them back, on two cores."""

from dataclasses import replace

from core.config import Config, GramConfig
from core.recipes.nano import anchored, nano_pretrain
from core.schedules import constant


def decay() -> Config:
    """Stage 1 of the laboratory: meant to lose dense structure within half an hour, while k-NN still rises.

    As `nano_pretrain`, which does so in two hours, at twice its rate; at this rate nobody has run it to its end yet.
    Every 150 steps the probes, k-NN and the masks of 84 photographs that the run never trains on.
    """
    base = nano_pretrain()
    return replace(
        base,
        name="decay",
        steps=1500,
        optim=replace(base.optim, lr=replace(base.optim.lr, peak=2e-3, end=2e-3)),
        run=replace(
            base.run,
            checkpoint_every=300,
            export_every=150,
            evaluate_every=150,
            masks="pets",
            masks_size=128,
            probe_every=150,
            probes=6,
            probe_size=128,
        ),
    )


def heal() -> Config:
    """Stage 2 of the laboratory: a fifth of the steps, anchored to the teacher with the best masks.

    Name both with --init.student RUN and --gram.teacher RUN@STEP. EMA 0.99 and not 0.999: after 300 steps a teacher
    that moves a thousandth a step would still be three quarters of what it was.
    """
    base = decay()
    run = replace(base.run, export_every=50, evaluate_every=50, probe_every=50, checkpoint_every=100)
    stage = anchored(replace(base, run=run), student="runs/decay", teacher="runs/decay@450")
    return replace(
        stage,
        name="heal",
        gram=replace(stage.gram, refresh_every=0, refresh_first=0, refresh_max=None),  # the early teacher stays
        optim=replace(stage.optim, momentum=constant(0.99)),
    )


def heal_without() -> Config:
    """The same steps as `heal` without Gram anchoring: what they alone would do."""
    stage = heal()
    sizes = tuple(replace(each, gram_size=None) for each in stage.crops.sizes)
    return replace(stage, name="heal_without", gram=GramConfig(), crops=replace(stage.crops, sizes=sizes))
