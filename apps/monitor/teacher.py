"""The tab that chooses a Gram teacher: what each checkpoint would show as one, and the stage that follows."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from apps.explorer.viewer import refusal
from apps.monitor.watch import Watch
from core.checkpoint import teacher_steps
from core.dense.degradation import PANEL
from workbench.picker import SHOWN, Candidate, candidates, pictures, write_stage
from workbench.runs import Run

MOST = 8  # candidates measured at once, spread evenly: each costs two maps a probe and a step of training
SIDE = 168  # px of a map
INTRODUCTION = (
    "<p>Gram anchoring pulls the patches of a net back to the relations that they have in an early checkpoint, the "
    "Gram teacher. The paper found teachers from early in training best, seen at twice the resolution and averaged "
    "down. Here is what each exported teacher of a run would show.</p>"
)


def build(watch: Watch, chosen: gr.Dropdown) -> None:
    """The tab's content; it speaks of the last of the chosen runs."""
    gr.HTML(INTRODUCTION)
    measure = gr.Button("Compare the checkpoints", variant="primary", elem_id="picker-measure")
    sheet = gr.HTML(elem_id="picker-sheet")
    with gr.Row(visible=False) as writing:
        step = gr.Dropdown([], label="Gram teacher: the checkpoint of step", elem_id="picker-step")
        name = gr.Textbox(label="Name of the next stage, a folder beside the run", elem_id="picker-name")
        write = gr.Button("Write the next stage", elem_id="picker-write", elem_classes="ask")
    told = gr.Markdown(elem_id="picker-told")

    def compare(names: list[str]) -> tuple[Any, ...]:
        run = last_of(watch, names)
        steps = spread(teacher_steps(run.folder))
        if not steps:
            raise refusal(f"{run.name} has not exported a teacher yet; see run.export_every")
        try:
            found = candidates(run, steps)
        except (OSError, ValueError) as error:
            raise refusal(str(error)) from error
        start = gr.Dropdown(choices=steps, value=likely(steps, run.evaluation("incontext").get("miou", {})))
        return sheet_of(found), gr.Row(visible=True), start, free_name(run), ""

    def prepare(names: list[str], step: int, name: str) -> str:
        run = last_of(watch, names)
        if not name or name != name.strip() or "/" in name or name.startswith("."):
            raise refusal("give the stage a name without slashes, for example " + free_name(run))
        folder = run.folder.parent / name
        try:
            config = write_stage(run, int(step), folder)
        except (OSError, ValueError) as error:
            raise refusal(str(error)) from error
        return (
            f"**{escape(name)}** is written: {config.steps} steps from the newest teacher of {escape(run.name)}, "
            f"anchored to its step {step}. Train it with\n\n```bash\ngramscope resume {folder}\n```"
        )

    measure.click(compare, chosen, [sheet, writing, step, name, told], api_visibility="private")
    write.click(prepare, [chosen, step, name], told, api_visibility="private")


def last_of(watch: Watch, names: Sequence[str]) -> Run:
    """The last of the chosen runs; says so where none is chosen or it is gone."""
    if not names:
        raise refusal("choose a run first")
    try:
        return watch.runs([names[-1]])[0]
    except ValueError as error:
        raise refusal(str(error)) from error


def spread(steps: Sequence[int], most: int = MOST) -> list[int]:
    """At most so many of them, evenly, the first and the last among them."""
    chosen = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int)
    return [steps[index] for index in chosen]


def likely(steps: Sequence[int], proxy: Mapping[int, float]) -> int:
    """Where to start choosing: the step that segments best with labels, where the run measured that; else the one
    nearest to 15 % of the way, where the paper's teachers come from (100,000 to 200,000 of a million)."""
    if measured := {step: proxy[step] for step in steps if step in proxy}:
        return max(measured, key=lambda step: measured[step])
    return min(steps, key=lambda step: abs(step - 0.15 * max(steps)))


def free_name(run: Run) -> str:
    """A name for the next stage that no folder beside the run has."""
    names = [f"{run.name}_gram", *(f"{run.name}_gram_{number}" for number in range(2, 1000))]
    return next(name for name in names if not (run.folder.parent / name).exists())


def sheet_of(found: Sequence[Candidate]) -> str:
    """A column a candidate: its maps at both sizes and its numbers, as HTML."""
    shown = pictures(found)
    head = "".join(f"<th>step {candidate.step}</th>" for candidate in found)
    rows = [("As it is", [_image(pair[0]) for pair in shown])]
    rows += [("From twice the size", [_image(pair[1]) for pair in shown])]
    for name in SHOWN:
        title = f"{PANEL[name].title}, which {PANEL[name].decay} in decay: as it is → from twice the size"
        rows.append((title, [f"{_number(c.once[name])} → {_number(c.twice[name])}" for c in found]))
    rows.append(("Gram loss at the start", [_number(candidate.loss) for candidate in found]))
    body = "".join(
        f"<tr><th>{escape(title)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for title, cells in rows
    )
    return f"<table class='card picker'><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _image(cells: np.ndarray) -> str:
    """A map, a pixel a patch, as an image that the browser enlarges without smoothing."""
    buffer = io.BytesIO()
    Image.fromarray(cells).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img src='data:image/png;base64,{data}' alt='map in PCA colours' width='{SIDE}'>"
