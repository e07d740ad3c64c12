"""Rules on the model, its crops and its masks."""

from core.doctor.case import Case, Found


def arch_unknown(case: Case) -> Found:
    """The backbone is built from an entry of the table and the settings of `model`."""
    if case.backbone is not None:
        return None
    from core.models import BACKBONES, build_backbone

    name = case.config.model.arch
    if name not in BACKBONES:
        return f"there is no backbone {name!r}", f"choose one of {', '.join(BACKBONES)}"
    try:
        build_backbone(name, device="meta", **case.config.model.overrides())
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        return f"{name} cannot be built with these settings: {error}", "change or leave out the settings of --model"
    return None


def not_of_patches(case: Case) -> Found:
    """A crop is cut into whole patches. Released code drops the rest of a crop at its right and lower edge without a
    word (its own high-resolution run has local crops of 168 px, 10.5 patches); this one refuses."""
    if case.patch is None:
        return None
    sides = {
        f"{name} {side}"
        for size in case.config.crops.sizes
        for name, side in (
            ("global", size.global_size),
            ("local", size.local_size),
            ("gram", size.gram_size or case.patch),
        )
        if side % case.patch or side < case.patch
    }
    if not sides:
        return None
    return f"crops are no multiple of the {case.patch} px patches: {', '.join(sorted(sides))}", "choose multiples of it"


def local_not_smaller(case: Case) -> Found:
    """Local crops show a small part of the picture, global ones most of it; that the student says the same of both is
    what it learns from."""
    if not case.config.crops.num_local:
        return None
    wrong = [size for size in case.config.crops.sizes if size.local_size >= size.global_size]
    low, high = case.config.crops.global_scale[0], case.config.crops.local_scale[1]
    if wrong:
        size = wrong[0]
        return f"local crops of {size.local_size} px beside global ones of {size.global_size}", "make them smaller"
    if high > low + 1e-9:
        found = f"local crops take up to {high:g} of the picture's area, global ones as little as {low:g}"
        return found, "let crops.local_scale end where crops.global_scale starts"
    return None


def no_local(case: Case) -> Found:
    """Every step compares the student's local crops with the teacher's global ones; the loss has no form without."""
    if case.config.crops.num_local > 0 or not case.has_prototypes:
        return None
    return (
        "crops.num_local is 0",
        "use at least 1; released runs use 8 (dino.local_weight 0 takes them out of the loss)",
    )


def shares(case: Case) -> Found:
    """Probabilities and shares lie between 0 and 1."""
    crops = case.config.crops
    wrong = []
    for name in ("flip", "jitter", "grayscale", "solarize"):
        wrong += [f"crops.{name} {getattr(crops, name):g}"] if not 0 <= getattr(crops, name) <= 1 else []
    wrong += [f"crops.blur {value:g}" for value in crops.blur if not 0 <= value <= 1]
    for name in ("global_scale", "local_scale"):
        low, high = getattr(crops, name)
        wrong += [f"crops.{name} {low:g} to {high:g}"] if not 0 < low <= high <= 1 else []
    wrong += [f"crops.aspect {crops.aspect}"] if not 0 < crops.aspect[0] <= crops.aspect[1] else []
    wrong += [f"crops.sizes probability {s.probability:g}" for s in crops.sizes if not 0 <= s.probability <= 1]
    drop = case.config.model.drop_path
    wrong += [f"model.drop_path {drop:g}"] if not 0 <= drop < 1 else []
    if not wrong:
        return None
    return f"not a share: {', '.join(wrong)}", "use values from 0 to 1, the lower before the higher"


def mask_nothing(case: Case) -> Found:
    """The local objective asks the student for patches it cannot see. With no patch masked there is nothing to ask;
    few images and low ratios round down to that."""
    config = case.config
    if case.patch is None or not config.ibot.weight:
        return None
    crops = int(2 * config.data.batch_size // max(case.world, 1) * config.ibot.masked_crops)
    side = min(size.global_size for size in config.crops.sizes) // case.patch
    patches = int(side**2 * config.ibot.mask_ratio[1])
    if crops and patches:
        return None
    return (
        f"no patch would be masked: {crops} masked crops a process, at most {patches} patches in each",
        "raise ibot.masked_crops or ibot.mask_ratio, or set ibot.weight to 0",
    )


def mask_everything(case: Case) -> Found:
    """A crop without any visible patch gives the student nothing to guess from. Released runs mask 10 to 50 %."""
    high = case.config.ibot.mask_ratio[1]
    if high <= 0.9 or not case.config.ibot.weight:
        return None
    return f"ibot.mask_ratio goes up to {high:g}", "lower it; 0.5 is the paper's"


def mask_convnext(case: Case) -> Found:
    """A ConvNeXt has no mask token: it sees the patches it is asked for. The paper distils ConvNeXts from a ViT and
    does not train them like this."""
    if not case.config.model.arch.startswith("convnext") or not case.config.ibot.weight:
        return None
    return f"{case.config.model.arch} cannot hide patches from itself", "set ibot.weight to 0, or train a ViT"
