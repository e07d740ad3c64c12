"""Rules on Gram anchoring: which teacher, seen how large, and in which stage."""

from core.doctor.case import Case, Found
from core.schedules import Schedule


def teacher_missing(case: Case) -> Found:
    """Gram anchoring compares the student with an earlier teacher. Without one there is nothing to compare with, and
    the Gram teacher would be a freshly initialised network."""
    gram = case.config.gram
    if not gram.use or gram.follow_ema or gram.teacher or gram.load_ema_at is not None:
        return None
    do = "set gram.teacher to an early teacher (RUN@STEP), or gram.load_ema_at to a step, or gram.follow_ema"
    return "gram.use is on and nothing says who the Gram teacher is", do


def teacher_not_found(case: Case) -> Found:
    """The Gram teacher is read before the first step, after all models are built; better to know now."""
    if not case.config.gram.use or case.gram_teacher is None or not case.gram_teacher.error:
        return None
    return (
        f"gram.teacher {case.config.gram.teacher!r} cannot be loaded: {case.gram_teacher.error}",
        "name an existing RUN@STEP or file with --gram.teacher; run.export_every of that run decides which steps exist",
    )


def teacher_architecture(case: Case) -> Found:
    """The Gram teacher is built like the student, so its weights must be of the same architecture. (Those of a public
    model of another size can be used after training a model of that size.)"""
    if not case.has_gram_teacher or case.gram_teacher is None or not (wrong := case.misfits(case.gram_teacher)):
        return None
    return (
        f"gram.teacher {case.config.gram.teacher!r} is another network: {wrong}",
        "choose a teacher of the same model",
    )


def teacher_is_init(case: Case) -> Found:
    """The point of the Gram teacher is that its patches are cleaner than the student's. The paper finds teachers of
    100,000 to 200,000 steps alike, and one of a million, where the student starts, worse. In the high-resolution stage,
    whose run has several crop sizes, both are meant to be the same."""
    init, teacher = case.init, case.gram_teacher
    if not case.has_gram_teacher or len(case.config.crops.sizes) > 1 or init is None or teacher is None:
        return None
    same = case.config.init.student == case.config.gram.teacher
    if init.path is not None and teacher.path is not None:
        same = init.path.resolve() == teacher.path.resolve()
    if not same:
        return None
    return (
        f"gram.teacher and init.student are the same weights, {case.config.gram.teacher}",
        "take an earlier step as the teacher: --gram.teacher RUN@STEP",
    )


def teacher_random(case: Case) -> Found:
    """Until the EMA teacher is copied, the Gram teacher is a freshly initialised network. With a weight above zero the
    student would be drawn to noise; beyond the last step it would stay so."""
    gram = case.config.gram
    if not case.has_gram_teacher or gram.teacher or gram.load_ema_at is None:
        return None
    before = gram.load_ema_at
    if before >= case.config.steps:
        found = (
            f"gram.load_ema_at {before} lies beyond the run's {case.config.steps} steps and there is no gram.teacher"
        )
        return found, "choose an earlier step"
    weight = max(
        (gram.weight.at(step, case.config.steps) for step in {0, before // 2, before - 1} if step >= 0), default=0
    )
    if not before or not weight:
        return None
    return (
        f"the Gram weight reaches {weight:g} before step {before}, when gram.load_ema_at fills the Gram teacher",
        f"start the weight there: --gram.weight.start 0 --gram.weight.peak 0 --gram.weight.warmup {before}",
    )


def two_teachers(case: Case) -> Found:
    """Both settings name the Gram teacher; the later one wins silently, and the weights loaded first are lost."""
    gram = case.config.gram
    if not gram.use or not gram.teacher or gram.load_ema_at is None:
        return None
    return (
        f"gram.teacher {gram.teacher!r} and gram.load_ema_at {gram.load_ema_at} both name the Gram teacher",
        "keep one; gram.refresh_every is there for later updates",
    )


def follow_ema(case: Case) -> Found:
    """With gram.follow_ema the EMA teacher itself is looked at, on the same crops: there is no third network that could
    be loaded or refreshed, so such settings would do nothing."""
    gram = case.config.gram
    extra = {
        "gram.teacher": gram.teacher,
        "gram.load_ema_at": gram.load_ema_at is not None,
        "gram.refresh_every": gram.refresh_every,
    }
    if not gram.use or not gram.follow_ema or not (named := [name for name, value in extra.items() if value]):
        return None
    return (
        f"gram.follow_ema and {', '.join(named)} exclude each other",
        f"drop gram.follow_ema or {' and '.join(named)}",
    )


def stage_order(case: Case) -> Found:
    """Gram anchoring is a second stage: it repairs the patches of a student that has learned long. The released command
    line only works when it is run in the folder of stage one; started elsewhere it anchors a random student to a
    trained teacher."""
    config = case.config
    if not case.has_gram_teacher or not config.gram.teacher or config.init.student:
        return None
    if not config.gram.weight.at(0, config.steps) and config.gram.weight.warmup >= config.steps // 10:
        return None  # a single run that learns first
    return (
        "the Gram teacher is loaded and the student starts from scratch",
        "name the run that this stage continues with --init.student RUN",
    )


def never_refreshed(case: Case) -> Found:
    """In the paper the Gram teacher becomes the EMA teacher every 10,000 steps, at most three times."""
    gram = case.config.gram
    if not case.has_gram_teacher or not gram.refresh_every:
        return None
    first = max(gram.refresh_every, -(-gram.refresh_first // gram.refresh_every) * gram.refresh_every)
    if first < case.config.steps and gram.refresh_max != 0:
        return None
    return (
        f"gram.refresh_every is {gram.refresh_every}, and no refresh falls into the run of {case.config.steps} steps",
        "lower gram.refresh_every and gram.refresh_first, or set gram.refresh_every to 0",
    )


def weight_zero(case: Case) -> Found:
    """A Gram loss of weight zero is computed, costs time and memory, and changes nothing."""
    if not case.config.gram.use or _highest(case.config.gram.weight, case.config.steps) > 0:
        return None
    return "gram.use is on and its weight is 0 at every step", "set gram.weight, or switch gram.use off"


def not_used(case: Case) -> Found:
    """Settings of the Gram teacher do nothing while gram.use is off."""
    gram = case.config.gram
    if gram.use or not (gram.teacher or gram.load_ema_at is not None or gram.follow_ema or gram.refresh_every):
        return None
    return "a Gram teacher is configured and gram.use is off", "add --gram.use"


def crop_smaller(case: Case) -> Found:
    """The Gram teacher's map is brought down to the student's grid. One smaller than that holds less than the student
    already sees."""
    wrong = [
        s for s in case.config.crops.sizes if case.has_gram_teacher and s.gram_size and s.gram_size < s.global_size
    ]
    if not wrong:
        return None
    said = ", ".join(f"{size.gram_size} for {size.global_size}" for size in wrong)
    return f"Gram crops are smaller than global crops: {said}", "twice the global crop is the paper's choice"


def crop_ratio(case: Case) -> Found:
    """Released runs show the Gram teacher crops of 2 or 1.5 times the side; in the paper's ablation 2 beats 1 (ADE20k
    55.7 and 53.6). Other ratios put the teacher's patches askew to the student's."""
    sizes = [
        s for s in case.config.crops.sizes if case.has_gram_teacher and s.gram_size and s.gram_size >= s.global_size
    ]
    askew = [s for s in sizes if (2 * (s.gram_size or 0)) % s.global_size or s.gram_size == s.global_size]
    if not askew:
        return None
    said = ", ".join(
        f"{s.gram_size} for {s.global_size} ({(s.gram_size or 0) / s.global_size:.3g} times)" for s in askew
    )
    return f"Gram crops of an unusual size: {said}", f"for example --crops.sizes.0.gram-size {2 * askew[0].global_size}"


def distorted(case: Case) -> Found:
    """The teacher shall see patches as clean as possible. In the released Gram stages its crops have neither colour
    changes nor blur; the default of the release is otherwise."""
    if not case.has_gram_teacher or not case.config.crops.gram_distorted:
        return None
    return "Gram crops share the colour changes and the blur of the global crops", "--crops.no-gram-distorted"


def images_small(case: Case) -> Found:
    """A Gram crop larger than what the photograph has shows the teacher an enlargement: it costs four times the time
    and holds no more detail."""
    sides = [min(look.sides) for look in case.looks if look.sides]
    largest = max((size.gram_size or 0 for size in case.config.crops.sizes), default=0)
    if not case.has_gram_teacher or not sides or not largest:
        return None
    small = sum(side < largest for side in sides)
    if small <= len(sides) // 2:
        return None
    return (
        f"{small} of {len(sides)} sampled images have a side below the Gram crop's {largest} px",
        "use larger photographs, or smaller crops for student and Gram teacher alike",
    )


def batch_level(case: Case) -> Found:
    """The paper compares the patches of each image among each other. At the level of the batch the matrix has every
    patch of all crops against every other."""
    config = case.config
    if not config.gram.use or config.gram.level != "batch" or case.patch is None:
        return None
    patches = max((size.global_size // case.patch) ** 2 for size in config.crops.sizes)
    rows = 2 * case.images_a_part * patches
    return (
        f"gram.level is 'batch': two matrices of {rows:,} x {rows:,}, {2 * rows**2 * 4 / 2**30:.3g} GiB a process",
        "--gram.level image, unless this is meant",
    )


def _highest(schedule: Schedule, steps: int) -> float:
    ends = {0, schedule.warmup, schedule.warmup + (schedule.cosine or 0), steps - 1}
    return max(schedule.at(step, steps) for step in ends if 0 <= step < steps)
