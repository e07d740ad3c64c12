"""Rules on frozen teachers."""

from core.doctor.case import Case, Found, find_weights


def not_found(case: Case) -> Found:
    """A frozen teacher is read before the first step."""
    from core.teachers import TEACHERS

    distill = case.config.distill
    names = [*filter(None, [distill.teacher]), *(teacher.name for teacher in distill.features)]
    wrong = [f"{name!r}: {find_weights(name).error}" for name in names if name not in TEACHERS]
    wrong = [entry for entry in wrong if not entry.endswith(": ")]
    if not wrong:
        return None
    return f"cannot be loaded: {'; '.join(wrong)}", "name an existing RUN, RUN@STEP, file or published weights"


def no_prototypes(case: Case) -> Found:
    """The paper's distillation compares with a run's prototypes, which are in its heads. Published backbones have none;
    their features can be learned instead (distill.features)."""
    from core.models.published import PUBLISHED

    weights = case.teacher
    if weights is None or weights.error:
        return None
    found = (weights.has_head("dino_head"), weights.has_head("ibot_head"))
    if False not in found and case.config.distill.teacher not in PUBLISHED:
        return None
    return (
        f"distill.teacher {case.config.distill.teacher!r} has no heads",
        "name a training run, or put the weights into distill.features",
    )


def other_prototypes(case: Case) -> Found:
    """Student and teacher answer in the same prototypes; widths of the heads before them may differ."""
    weights = case.teacher
    if weights is None or weights.shapes is None:
        return None
    wrong = []
    for name, head in (("dino", case.config.dino.head), ("ibot", case.config.ibot.head)):
        shape = weights.shapes.get(f"{name}_head.last_layer.weight")
        if shape is not None and shape[0] != head.prototypes:
            wrong.append(f"{name}.head.prototypes is {head.prototypes} and the teacher has {shape[0]}")
    return ("; ".join(wrong), "give the student the teacher's numbers") if wrong else None


def chunks(case: Case) -> Found:
    """Teachers look at a whole number of chunks, so that what they see depends on no number of processes."""
    distill, batch = case.config.distill, case.config.data.batch_size
    if not distill.use or not batch % distill.chunk:
        return None
    return (
        f"data.batch_size {batch} is not a multiple of distill.chunk {distill.chunk}",
        f"--data.batch-size {max(batch // distill.chunk, 1) * distill.chunk}, or another chunk",
    )


def cells(case: Case) -> Found:
    """Masks and the teacher's patches lie on the student's grid, whose cells are whole pixels of the crops."""
    if not case.config.distill.use or case.backbone is None:
        return None
    from core.data.loader import mask_cell

    try:
        mask_cell(case.config)
    except ValueError as error:
        return str(error), "change the crop sizes or distill.student_scale"
    return None


def student_scale_alone(case: Case) -> Found:
    """Without frozen teachers nothing reads this setting."""
    if case.config.distill.use or case.config.distill.student_scale == 1:
        return None
    return "distill.student_scale is set and there is no frozen teacher", "name a teacher, or leave it at 1"


def warms_up(case: Case) -> Found:
    """A frozen teacher's prototypes mean something from the first step on; the released ViT runs start at the final
    temperature and freeze no last layer (its ConvNeXt runs do both)."""
    config = case.config
    if not config.distill.teacher or config.optim.freeze_last_layer <= config.steps // 10:
        return None
    return (
        f"optim.freeze_last_layer is {config.optim.freeze_last_layer} of {config.steps} steps",
        "--optim.freeze-last-layer 0",
    )
