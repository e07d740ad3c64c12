"""Rules on batches and on the terms of the loss."""

from core.doctor.case import Case, Found


def batch_world(case: Case) -> Found:
    """The global batch is cut into equal parts, one a process, so that a run stays the same whatever their number."""
    batch = case.config.data.batch_size
    if not batch % case.world:
        return None
    return (
        f"data.batch_size {batch} is not a multiple of the {case.world} processes",
        f"--data.batch-size {max(batch // case.world, 1) * case.world}, or another number of processes",
    )


def batch_accumulate(case: Case) -> Found:
    """With gradient accumulation the batch of a process is cut into equal parts once more."""
    parts, batch = case.config.parallel.accumulate, case.config.data.batch_size // case.world
    if parts >= 1 and batch >= parts and not batch % parts:
        return None
    return (
        f"the {batch} images of a process do not make {parts} equal parts",
        "choose parallel.accumulate among the divisors of the batch of a process",
    )


def koleo_alone(case: Case) -> Found:
    """KoLeo pushes every image from its nearest neighbour, so an image needs company: alone, released code divides by
    nothing and the loss becomes NaN. Neighbours are looked for among the images of one process (and of one part, with
    accumulation) unless koleo.group says otherwise."""
    koleo = case.config.koleo
    company = koleo.group or case.images_a_part
    if company > koleo.topk >= 1:
        return None
    return (
        f"KoLeo looks for {koleo.topk} neighbours among {company} images",
        "use a larger batch a process, a larger koleo.group, or koleo.topk 1",
    )


def koleo_group(case: Case) -> Found:
    """Groups hold either a part of one process's images or the images of several whole processes; anything between
    would cut a process in two."""
    koleo, own = case.config.koleo, case.images_a_part
    if koleo.group is None or own < 1:
        return None
    inside = koleo.group <= own and not own % koleo.group
    across = koleo.group > own and not koleo.group % own and not (own * case.world) % koleo.group
    if inside or across:
        return None
    return (
        f"koleo.group {koleo.group} neither divides the {own} images that a process sees at once nor holds whole "
        f"processes of {case.world}",
        f"use a divisor or a multiple of {own}, or leave koleo.group out",
    )


def loss_weights(case: Case) -> Found:
    """A negative weight rewards what the term is there to prevent; without any term there is nothing to learn."""
    config = case.config
    weights = {"dino": config.dino.weight, "ibot": config.ibot.weight, "koleo": config.koleo.weight}
    if negative := [name for name, weight in weights.items() if weight < 0]:
        return f"negative weight of {', '.join(negative)}", "use weights of 0 and more"
    features = [weight for teacher in config.distill.features for weight in (teacher.cls, teacher.patches)]
    if any(weight < 0 for weight in features):
        return "negative weight in distill.features", "use weights of 0 and more"
    if not weights["dino"] and not weights["ibot"] and not any(features):
        return "dino.weight and ibot.weight are both 0", "switch at least one of them on"
    return None


def loss_off(case: Case) -> Found:
    """The paper's model needs both objectives: images for what is in a picture, patches for where."""
    config = case.config
    off = [name for name in ("dino", "ibot", "koleo") if not getattr(config, name).weight]
    if not off or len(off) == 3 or config.distill.features:
        return None
    return f"weight 0: {', '.join(off)}", "nothing, if this is an ablation"


def student_temperature(case: Case) -> Found:
    """Logits are divided by the temperature; the lower it is, the surer the student has to be."""
    pairs = (("dino", case.config.dino.student_temp), ("ibot", case.config.ibot.student_temp))
    wrong = [f"{name}.student_temp {value:g}" for name, value in pairs if value <= 0]
    return (f"not positive: {', '.join(wrong)}", "released runs use 0.1") if wrong else None
