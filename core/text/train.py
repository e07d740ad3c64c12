"""Training text beside a frozen backbone: `python -m core.text.train RUN`, from its newest checkpoint or the start.

What is learned is the vision head, the text tower or the projection of a sentence encoder, and the scale of cosines.
"""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core import distributed
from core.losses import contrastive, gram
from core.run_folder import keep_metrics_before, lock, replace_text
from core.text.assemble import WEIGHTS, build
from core.text.captions import read_captions
from core.text.config import TextConfig, load_config
from core.text.measure import retrieval
from core.text.model import DinoText, ImageFeatures
from core.text.tokenizer import Tokenize
from core.text.views import Views, draw
from core.train import seed_step

STATE = "checkpoint.safetensors"


def train(folder: Path, *, stop_after: int | None = None) -> int:
    """Trains a run to its last step, or to `stop_after`; returns how many steps are finished."""
    config, world = load_config(folder), distributed.start()
    if config.batch_size % world.size:
        raise ValueError(f"a batch of {config.batch_size} cannot be shared by {world.size} processes evenly")
    torch.manual_seed(config.seed)
    model, tokenizer = build(config)
    model.to(world.device).train()
    items = [item for source in config.sources for item in read_captions(Path(source), "train")]
    views = Views(items, model.visual_model, config, folder / "seen")
    optimizer = build_optimizer(model, config)
    finished = load(folder, model, optimizer)
    last = config.steps if stop_after is None else min(stop_after, config.steps)
    with lock(folder) if distributed.is_main() else nullcontext():
        if distributed.is_main():
            keep_metrics_before(folder, finished)
        for step in range(finished, last):
            began = time.perf_counter()
            seed_step(config.seed, step, world.rank)
            rows, which = (part[world.rank :: world.size] for part in draw(items, config, step))
            texts = tokenizer([items[row].captions[at] for row, at in zip(rows, which, strict=True)])
            images = model.visual_model(views.of(rows, step).to(world.device))
            terms = losses(model, images, texts.to(world.device), config)
            learn(model, optimizer, terms, config, step)
            finished = step + 1
            if step % config.log_every == 0 or finished == config.steps:
                write_line(folder, step, config, terms, model, time.perf_counter() - began)
            if finished % config.evaluate_every == 0 or finished == config.steps:
                write_evaluation(folder, finished, model, tokenizer, config)
            if finished % config.checkpoint_every == 0 or finished == last:
                save(folder, finished, model, optimizer)
        if finished == config.steps and distributed.is_main():
            save_file({name: x.contiguous() for name, x in model.trained_state().items()}, folder / WEIGHTS)
    return finished


def losses(model: DinoText, images: ImageFeatures, texts: Tensor, config: TextConfig) -> dict[str, Tensor]:
    """The terms, unweighted: contrast, and with gram_weight how far the head's patches are related otherwise than the
    backbone's."""
    terms = {"contrastive": contrastive(images.vector, model.encode_text(texts), model.scale)}
    if config.gram_weight:
        count = max(round(config.gram_share * images.patches.shape[1]), 1)
        chosen = torch.randperm(images.patches.shape[1], device=texts.device)[:count]
        terms["gram"] = gram(images.patches[:, chosen], images.backbone_patches[:, chosen])
    return terms


def learn(
    model: DinoText, optimizer: torch.optim.Optimizer, terms: dict[str, Tensor], config: TextConfig, step: int
) -> None:
    """One update. Raises FloatingPointError for a loss that is no number; weights are then as they were."""
    total = terms["contrastive"] + config.gram_weight * terms.get("gram", torch.zeros(()))
    total.backward()
    for parameter in trained(model).values():
        if parameter.grad is not None:
            parameter.grad = distributed.all_mean(parameter.grad)
    if not bool(distributed.all_mean(total.detach()).isfinite()):
        raise FloatingPointError(f"the loss of step {step} is no number; the weights were left as they were")
    for group in optimizer.param_groups:
        group["lr"] = config.lr.at(step, config.steps)
    optimizer.step()
    optimizer.zero_grad()
    model.clamp_scale()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is learned, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build_optimizer(model: nn.Module, config: TextConfig) -> torch.optim.AdamW:
    """AdamW; vectors, norms, biases and the scale do not decay (as released: by rank and by name)."""
    spared: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in trained(model).items():
        small = parameter.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_scale"))
        (spared if small else others).append(parameter)
    groups = [{"params": others, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=config.betas, eps=1e-8)


def save(folder: Path, finished: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Everything to go on from, in one file that appears when it is whole."""
    if not distributed.is_main():
        return
    state: dict[str, Tensor] = {"step": torch.tensor(finished)}
    for name, parameter in trained(model).items():
        state[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    draft = folder / f"{STATE}.new"
    save_file({name: x.cpu().contiguous().clone() for name, x in state.items()}, draft)
    draft.replace(folder / STATE)


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Puts the newest checkpoint into model and optimizer; returns its number of finished steps, 0 without one."""
    if not (folder / STATE).exists():
        return 0
    state = load_file(folder / STATE)
    with torch.no_grad():
        for name, parameter in trained(model).items():
            parameter.copy_(state[f"model.{name}"])
            prefix = f"optimizer.{name}."
            moments = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
            optimizer.state[parameter] = {
                key: x if key == "step" else x.to(parameter.device) for key, x in moments.items()
            }
    return int(state["step"])


def write_line(
    folder: Path, step: int, config: TextConfig, terms: dict[str, Tensor], model: DinoText, seconds: float
) -> None:
    """One line of metrics.jsonl."""
    means = {name: float(distributed.all_mean(value.detach())) for name, value in terms.items()}
    if distributed.is_main():
        line = {"step": step, "time": round(time.time(), 3), "lr": config.lr.at(step, config.steps)}
        line |= means | {"scale": float(model.scale.detach()), "images_per_second": config.batch_size / seconds}
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def write_evaluation(folder: Path, finished: int, model: DinoText, tokenizer: Tokenize, config: TextConfig) -> None:
    """Retrieval on the validation splits, in evals/<step>/retrieval.json."""
    if not distributed.is_main():
        return
    items = [item for source in config.sources for item in read_captions(Path(source), "val")]
    model.eval()
    numbers = retrieval(model, tokenizer, items, config.image_size)
    model.train()
    text = json.dumps(numbers, indent=2) + "\n"
    replace_text(folder / "evals" / str(finished) / "retrieval.json", text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m core.text.train RUN, a folder with a config.json")
    try:
        train(Path(sys.argv[1]))
    finally:
        distributed.stop()
