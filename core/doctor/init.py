"""Rules on the weights a student starts from."""

from core.doctor.case import Case, Found


def not_found(case: Case) -> Found:
    """A stage that continues another one reads its teacher, which becomes student and EMA teacher of this one."""
    if case.init is None or not case.init.error:
        return None
    return (
        f"init.student {case.config.init.student!r} cannot be loaded: {case.init.error}",
        "name an existing RUN, RUN@STEP or file with --init.student",
    )


def architecture(case: Case) -> Found:
    """Weights fit only a network of the same shapes."""
    if case.init is None or not (wrong := case.misfits(case.init)):
        return None
    return (
        f"init.student {case.config.init.student!r} is another network: {wrong}",
        "take the model settings of that run, or train from scratch (--init.student '')",
    )


def narrow(case: Case) -> Found:
    """A student can be cut out of a wider ViT of the same depth whose heads have the same width; what else differs
    (patches, positions, registers) does not matter."""
    weights, config = case.narrow, case.config
    if weights is None or case.backbone is None:
        return None
    if weights.error:
        wrong = f"cannot be loaded: {weights.error}"
    elif weights.shapes is not None and "cls_token" in weights.shapes:
        depth = len({key.split(".")[1] for key in weights.shapes if key.startswith("blocks.")})
        width, own = weights.shapes["cls_token"][-1], (case.backbone.embed_dim, getattr(case.backbone, "depth", 0))
        if width >= own[0] and depth == own[1]:
            return None
        wrong = f"has width {width} and {depth} blocks, the student {own[0]} and {own[1]}"
    else:
        return None
    return f"init.narrow {config.init.narrow!r} {wrong}", "name a wider ViT of the student's depth, or --init.narrow ''"


def heads(case: Case) -> Found:
    """Heads of another width or with another number of prototypes cannot be continued. Prototypes are what the student
    has learned to answer with, so starting them anew costs many steps."""
    if case.init is None or case.init.shapes is None or not case.config.init.heads:
        return None
    wrong = []
    for name, head in (("dino_head", case.config.dino.head), ("ibot_head", case.config.ibot.head)):
        shape = case.init.shapes.get(f"{name}.last_layer.weight")
        layers = sum(k.startswith(f"{name}.mlp.") and k.endswith(".weight") for k in case.init.shapes)
        if shape is None:
            continue
        hidden = case.init.shapes.get(f"{name}.mlp.0.weight", (head.hidden,))[0] if head.layers > 1 else head.hidden
        there, here = (*shape, hidden, layers), (head.prototypes, head.bottleneck, head.hidden, head.layers)
        if there != here:
            wrong.append(f"{name} has (prototypes, bottleneck, hidden, layers) {there} there and {here} here")
    if not wrong:
        return None
    return "; ".join(wrong), "take the head settings of that run, or start heads anew with --init.no-heads"


def no_heads(case: Case) -> Found:
    """Public weights come without heads. Then both heads start from noise and the losses at ln K, and the first steps
    disturb the backbone; a longer freeze of the last layers and a warm-up help."""
    if case.init is None or case.init.error or not case.config.init.heads or not case.has_prototypes:
        return None
    if False not in (case.init.has_head("dino_head"), case.init.has_head("ibot_head")):
        return None
    return (
        f"{case.config.init.student} holds no heads: they start from scratch",
        "nothing, if this is meant; --init.no-heads says so",
    )


def warms_up_again(case: Case) -> Found:
    """Freezing the last layers and the low teacher temperature protect fresh prototypes. Prototypes that are continued
    do not need it, and a temperature that starts low again sharpens the targets of a trained student at one stroke."""
    config = case.config
    if case.init is None or not config.init.heads or case.init.has_head("dino_head") is not True:
        return None
    optim = config.optim
    warm = optim.teacher_temp.at(0, config.steps) < optim.teacher_temp.at(config.steps - 1, config.steps)
    again = [f"optim.freeze_last_layer is {optim.freeze_last_layer}"] if optim.freeze_last_layer else []
    again += ["optim.teacher_temp starts low"] if warm else []
    if not again:
        return None
    return (
        f"heads are continued and {' and '.join(again)}",
        "--optim.freeze-last-layer 0 and a constant teacher temperature (start = peak = end, warmup 0)",
    )


def missing_at_high_resolution(case: Case) -> Found:
    """The stage at mixed resolutions adapts a trained model; the released run has a peak learning rate a fifth of that
    of pretraining and 30,000 steps."""
    if case.config.init.student or len(case.config.crops.sizes) == 1:
        return None
    return "several crop sizes and a student from scratch", "name the run to continue with --init.student RUN"
