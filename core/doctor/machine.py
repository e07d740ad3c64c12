"""Rules on disk, memory and arithmetic of the machine. Estimates are of the right size, no more."""

from core.doctor.case import GIB, Case, Found


def checkpoint_gib(case: Case) -> float:
    """One checkpoint: student, its two moments, EMA teacher and Gram teacher in fp32."""
    backbone, heads = case.parameters["backbone"], case.parameters["heads"]
    return 4 * (4 * (backbone + heads) + backbone * case.has_gram_teacher) / GIB


def disk_space(case: Case) -> Found:
    """The newest checkpoints are kept, and a new one is written before an old one goes. A full disk stops the run."""
    one, keep = checkpoint_gib(case), max(case.config.run.keep, 1)
    needed = one * (keep + 1)
    if needed <= case.machine.disk_free_gib:
        return None
    return (
        f"{keep} checkpoints and the one being written need {needed:.3g} GiB; "
        f"{case.machine.disk_free_gib:.3g} GiB are free",
        "put the run on another disk with --out, or lower run.keep",
    )


def disk_space_later(case: Case) -> Found:
    """Checkpoints kept for good and exported teachers add up over a run."""
    settings, steps = case.config.run, case.config.steps
    kept = steps // settings.keep_every if settings.keep_every > 0 else 0
    exported = 1 + sum(steps // every for every in (settings.export_every, settings.probe_every) if every > 0)
    teacher = 4 * sum(case.parameters.values()) / GIB
    needed = checkpoint_gib(case) * (max(settings.keep, 1) + 1 + kept) + teacher * exported
    if needed <= case.machine.disk_free_gib or disk_space(case):
        return None
    return (
        f"the whole run writes {needed:.3g} GiB ({kept} checkpoints for good, {exported} teachers); "
        f"{case.machine.disk_free_gib:.3g} GiB are free",
        "raise run.keep_every and run.export_every, or use another disk with --out",
    )


def state_gib(case: Case) -> float:
    """Weights, gradients, moments and teachers of one process, fp32, spread over all processes."""
    backbone, heads = case.parameters["backbone"], case.parameters["heads"]
    return 4 * (5 * (backbone + heads) + backbone * case.has_gram_teacher) / case.world / GIB


def activations_gib(case: Case) -> float:
    """What a step keeps for its backward pass in one process: about 18 numbers a channel, layer and token."""
    from core.models.vit import VisionTransformer

    config, backbone = case.config, case.backbone
    if not isinstance(backbone, VisionTransformer):
        return 0.0
    width = 2 if config.parallel.precision == "bf16" else 4
    prefix = 1 + backbone.num_registers
    images = max(case.images_a_part, 1)

    def tokens(side: int) -> int:
        return (side // backbone.patch_size) ** 2 + prefix

    seen = max(2 * tokens(s.global_size) + config.crops.num_local * tokens(s.local_size) for s in config.crops.sizes)
    layer = images * seen * backbone.embed_dim * width
    kept = {"none": 18 * backbone.depth, "selective": 9 * backbone.depth, "full": backbone.depth + 18}
    masked = config.ibot.masked_crops * sum(config.ibot.mask_ratio) / 2
    patches = images * 2 * masked * max(tokens(s.global_size) for s in config.crops.sizes)
    rows = images * (4 + config.crops.num_local) * config.dino.head.prototypes
    logits = 4 * 3 * (rows + 2 * patches * config.ibot.head.prototypes)  # of student and teacher, fp32
    return (kept[config.parallel.recompute] * layer + logits) / GIB


def memory(case: Case) -> Found:
    """Weights, gradients, AdamW's moments and the teachers have to fit before a single image does."""
    room, where, needed = _room(case, state_gib(case))
    if needed <= room:
        return None
    return f"the models alone need {needed:.3g} GiB of the {room:.3g} GiB {where}", "a smaller model, or more processes"


def memory_tight(case: Case) -> Found:
    """An estimate of what a step keeps for its backward pass, on top of the models."""
    models, steps = state_gib(case), activations_gib(case)
    room, where, needed = _room(case, models + steps)
    if needed <= 0.9 * room or memory(case):
        return None
    return (
        f"roughly {models:.3g} GiB of models and {steps:.3g} GiB of activations a process, {room:.3g} GiB {where}",
        "--parallel.recompute full, --parallel.accumulate 2, smaller batches or more processes",
    )


def fp8_hardware(case: Case) -> Found:
    """Eight-bit products need tensor cores that know e4m3: compute capability 8.9 and above (Ada, H100)."""
    if not case.config.parallel.fp8 or (case.machine.gpus and min(gpu.capability for gpu in case.machine.gpus) >= 8.9):
        return None
    here = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in case.machine.gpus) or "no GPU"
    return f"parallel.fp8 is on; here: {here}", "--parallel.no-fp8"


def fp8_precision(case: Case) -> Found:
    """Products in eight bits have bf16 results."""
    if not case.config.parallel.fp8 or case.config.parallel.precision == "bf16":
        return None
    return f"parallel.fp8 with precision {case.config.parallel.precision}", "--parallel.precision bf16"


def fp8_widths(case: Case) -> Found:
    """The scaled product takes widths that are multiples of 64; that is why the 7B has its kind of SwiGLU."""
    if not case.config.parallel.fp8 or case.backbone is None:
        return None
    wrong = sorted(
        {
            f"{shape[1]} to {shape[0]}"
            for name, tensor in case.backbone.state_dict().items()
            if name.startswith(("blocks.", "stages."))
            and len(shape := tuple(tensor.shape)) == 2
            and (shape[0] % 64 or shape[1] % 64)
        }
    )
    if not wrong:
        return None
    return f"parallel.fp8 with layers of {', '.join(wrong)} features", "--parallel.no-fp8, or another arch"


def bf16_on_cpu(case: Case) -> Found:
    """Most CPUs compute bf16 by way of fp32: the same time or more, and less precise."""
    if case.machine.gpus or case.config.parallel.precision != "bf16":
        return None
    return "parallel.precision is bf16 and there is no GPU", "--parallel.precision fp32"


def compile_on_cpu(case: Case) -> Found:
    """On a CPU compiling takes minutes at the start and needs a C++ compiler; short runs never win that back."""
    if case.machine.gpus or not case.config.parallel.compile:
        return None
    what = "" if case.machine.compiler else ", nor a C++ compiler, so models would run uncompiled"
    return f"parallel.compile is on and there is no GPU{what}", "--parallel.no-compile"


def workers(case: Case) -> Found:
    """More processes that cut crops than cores take turns, and each holds its own batches in memory."""
    local = min(case.world, max(len(case.machine.gpus), 1))
    wanted = case.config.data.workers * local
    if wanted <= max(case.machine.cpus, 2):
        return None
    return (
        f"{wanted} data workers ({case.config.data.workers} a process) on {case.machine.cpus} cores",
        f"--data.workers {max(case.machine.cpus // local, 1)}",
    )


def _room(case: Case, each: float) -> tuple[float, str, float]:
    """GiB there are, of what, and GiB needed of that: GPUs have their own memory, processes on a CPU share it."""
    if case.machine.gpus:
        return min(gpu.memory_gib for gpu in case.machine.gpus), "of a GPU", each
    return case.machine.memory_gib, "of this machine's memory", each * case.world
