"""Break it and heal it: dense features that decay, and Gram anchoring that brings them back, on two cores.

    gramscope train dense --out runs/dense                  3 minutes: maps that are worth something, a good teacher's
    gramscope train decay --out runs/decay                  8 minutes: the global objective alone
    gramscope train heal --out runs/heal                    3 minutes: a fifth of the steps, anchored to runs/dense
    gramscope train heal_without --out runs/heal_without    2 minutes: the same steps without

From scratch it cannot be had in an hour: a model as small and young still learns what its patches show while it trains,
and has nothing yet to lose (README). So it is given maps first, and the paper's effect then takes minutes.
"""

from dataclasses import replace

from core.config import Config, DistillConfig, GramConfig, InitConfig, KoleoConfig, TeacherConfig
from core.recipes.nano import nano_pretrain, seen_larger
from core.schedules import Schedule, constant


def dense() -> Config:
    """Stage 0 of the laboratory: a ViT of width 128 takes the patches of `gramscope_vitt16`, and nothing else of it.

    Its maps are then good and its CLS knows little, as at the point of the paper's long run where dense quality is best
    (section 4.1). No self-supervision yet, and none of the teacher's CLS.
    """
    base = nano_pretrain()
    return replace(
        base,
        name="dense",
        steps=200,
        dino=replace(base.dino, weight=0.0),
        ibot=replace(base.ibot, weight=0.0),
        koleo=KoleoConfig(weight=0.0),
        crops=replace(base.crops, num_local=0, global_scale=(0.3, 1.0)),
        optim=replace(
            base.optim,
            lr=Schedule(start=0.0, peak=2e-3, end=1e-4, warmup=20, cosine=None),
            momentum=constant(0.98),
            freeze_last_layer=0,
        ),
        distill=DistillConfig(
            features=(TeacherConfig(name="gramscope_vitt16", cls=0.0, patches=1.0),), chunk=16, settle=20
        ),
        run=replace(
            base.run,
            checkpoint_every=100,
            export_every=100,
            evaluate_every=100,
            masks="pets",
            masks_size=128,
            probe_every=100,
            probes=6,
            probe_size=128,
        ),
    )


def decay() -> Config:
    """Stage 1 of the laboratory: DINO and KoLeo alone, iBOT off. k-NN holds, and patches lose what they had.

    iBOT gives patches an objective of their own. The paper keeps it, and decay takes hundreds of thousands of steps.
    The head is new, `dense` has none, and small: with the 4096 prototypes of `nano_pretrain` or at twice the rate k-NN
    falls with the maps (README). Continues runs/dense; name another with --init.student RUN.
    """
    base = nano_pretrain()
    start = dense()
    return replace(
        base,
        name="decay",
        steps=500,
        init=InitConfig(student="runs/dense", heads=False),
        dino=replace(base.dino, head=replace(base.dino.head, prototypes=256)),
        ibot=replace(base.ibot, weight=0.0),
        optim=replace(
            base.optim,
            lr=Schedule(start=0.0, peak=1e-3, end=1e-3, warmup=30),
            momentum=constant(0.99),
            freeze_last_layer=0,
        ),
        run=start.run,
    )


def heal() -> Config:
    """Stage 2 of the laboratory: a fifth of the steps with the same objective, anchored to the maps of runs/dense.

    The Gram teacher stays and sees its crops, undistorted, at twice the size (sections 4.2 and 4.3). Continues
    runs/decay; name others with --init.student RUN and --gram.teacher RUN@STEP.
    """
    base = heal_without()
    return replace(
        base,
        name="heal",
        gram=GramConfig(use=True, teacher="runs/dense", weight=constant(10.0)),
        crops=seen_larger(base.crops),
    )


def heal_without() -> Config:
    """The same steps as `heal` without Gram anchoring: what they alone would do."""
    base = decay()
    return replace(
        base,
        name="heal_without",
        steps=100,
        init=InitConfig(student="runs/decay"),
        optim=replace(base.optim, lr=constant(6e-4), momentum=constant(0.97)),
        run=replace(base.run, checkpoint_every=50, export_every=25, evaluate_every=25, probe_every=25),
    )
