"""Rules on the images."""

from core.doctor.case import Case, Found, open_one


def none(case: Case) -> Found:
    """Recipes do not know where your images lie."""
    if case.config.data.sources:
        return None
    return "no images: data.sources is empty", "name a folder, a tar or zip, or a pattern of them with --data PATH"


def unreadable(case: Case) -> Found:
    """Every source is opened before the first step."""
    wrong = [opened for opened in case.sources if opened.source is None or not len(opened.source)]
    if not wrong:
        return None
    said = "; ".join(f"{opened.config.path!r}: {opened.error or 'no images in it'}" for opened in wrong)
    return f"sources that cannot be used: {said}", "correct the path with --data PATH"


def too_small(case: Case) -> Found:
    """With fewer images than a batch has places the same image stands in a batch twice. KoLeo then pushes an image from
    itself, and the loss asks for the impossible."""
    sizes = [len(opened.source) for opened in case.sources if opened.source is not None]
    if not sizes or min(sizes) == 0 or sum(sizes) >= case.config.data.batch_size:
        return None
    return (
        f"{sum(sizes)} images for batches of {case.config.data.batch_size}",
        "use more images, or a smaller data.batch_size",
    )


def shares(case: Case) -> Found:
    """Steps that are not of one source alone mix all sources by weight times size."""
    entries = case.config.data.sources
    alone = sum(source.homogeneous for source in entries)
    negative = [source.path for source in entries if source.weight < 0 or source.homogeneous < 0]
    if negative:
        return f"negative weight or share: {', '.join(negative)}", "use values of 0 and more"
    if not entries or alone > 1 - 1e-9 or any(source.weight for source in entries):
        return None
    return f"every source has weight 0, and {1 - alone:.3g} of the steps mix sources", "give one a weight above 0"


def images_broken(case: Case) -> Found:
    """A broken image is replaced by another one and named in broken.txt. A few do no harm; many usually mean that
    something else lies there."""
    broken = [look.name for look in case.looks if look.sides is None]
    if not broken:
        return None
    return f"{len(broken)} of {len(case.looks)} sampled images cannot be read, such as {broken[0]}", "look at them"


def images_small(case: Case) -> Found:
    """A global crop takes a third of the picture or more and is brought to its size; from smaller pictures it is an
    enlargement, whose fine patches hold nothing."""
    sides = [min(look.sides) for look in case.looks if look.sides]
    largest = max(size.global_size for size in case.config.crops.sizes)
    small = sum(side < largest / 2 for side in sides)
    if not sides or small <= len(sides) // 2:
        return None
    return (
        f"{small} of {len(sides)} sampled images have a side below half the global crop's {largest} px",
        "use larger photographs or smaller crops",
    )


def evaluate_no_labels(case: Case) -> Found:
    """k-NN during training needs the classes of images in a training and a validation split: folders named so, or the
    columns `split` and `label` of an index.tsv."""
    if not case.config.run.evaluate_every or not any(opened.source for opened in case.sources):
        return None
    for opened in case.sources:
        if opened.source is None or not len(opened.source) or opened.source.label(0) is None:
            continue
        val = open_one(opened.config, "val").source
        if val is not None and len(val) and val.label(0) is not None:
            return None
    return (
        "run.evaluate_every is set and no source has labels and a validation split",
        "--run.evaluate-every 0, or folders train/<class> and val/<class>",
    )
