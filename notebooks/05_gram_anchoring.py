# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Can what was lost be brought back?
# Gram anchoring (section 4.2 of the paper) holds the cosines between the patches of a picture to those of an earlier
# checkpoint, and leaves the features free. Two runs went on from the same decayed checkpoint, for as many steps, one
# with it and one without.

# %%
import numpy as np
from PIL import Image

from core.dense.color import fit_basis, to_rgb
from core.dense.degradation import on_grid_of
from core.losses.gram import gram
from core.probes import map_of
from workbench import extract, load
from workbench.images import list_samples, open_image
from workbench.plots import moment_curves, seed_curves
from workbench.runs import RunSeries, shipped_run, shipped_seeds
from workbench.widgets import GramLens, TimeSlider

# %%
dense, decay, heal, without = (shipped_run(name) for name in ("dense", "decay", "heal", "heal_without"))
series = RunSeries.of([dense, decay, heal])
cat = series.images.index("cat_bengal.jpg")

view = TimeSlider(series, image=cat, point=(5, 9))
view

# %% [markdown]
# ## With it and without it
# In-context mIoU is what labels say of the maps, k-NN what they say of whole pictures. The anchor brings maps back
# towards what the early teacher had, and costs little of k-NN; the same steps without it do not.

# %%
TOLD = ("miou", "knn", "gram_distance")
titles = [f"{moment.run.name} {moment.step}" for moment in series.moments]
moment_curves(titles, [curve for curve in view.curves if curve["name"] in TOLD])

# %%
alone = RunSeries.of([dense, decay, without])
titles = [f"{moment.run.name} {moment.step}" for moment in alone.moments]
moment_curves(titles, [curve for curve in TimeSlider(alone).curves if curve["name"] in TOLD])

# %% [markdown]
# ## Is that chance?
# The same four runs with three seeds (thin) and their mean (thick), measured on 400 cats and dogs that no run saw.

# %%
TITLES = {"miou": "In-context mIoU", "knn": "k-NN accuracy", "cls_patch_cosine": "CLS-patch cosine"}
seed_curves(shipped_seeds(), TITLES)

# %% [markdown]
# ## The same step of both, one over the other
# "Against" may be a run: then its checkpoint of the same step is compared.

# %%
every = RunSeries.of([heal, without])
TimeSlider(every, image=cat, time=len(heal.probe_steps) - 1, against="heal_without", compare="swipe", point=(5, 9))

# %% [markdown]
# ## The loss is a distance of two Gram matrices
# Of features at length one: patches may turn together as they like, only who resembles whom is held.

# %%
first, last = len(dense.probe_steps) - 1, len(dense.probe_steps) + len(decay.probe_steps) - 1
best, lost, healed = (series.map(series.moments[at], cat) for at in (first, last, -1))
{name: round(float(gram(map.unit[None], best.unit[None])), 4) for name, map in (("decayed", lost), ("healed", healed))}

# %%
three = [view.table[at][cat] for at in (first, last, -1)]
GramLens(*three, titles=["the teacher", "decayed", "healed"], pack=2, against=1)

# %% [markdown]
# ## Seen twice as large
# Section 4.3: a teacher that sees its crop at twice the size and is averaged down gives smoother, finer targets. The
# ViT-S/14 on one photograph, as it is and that way.

# %%
backbone = load("dinov2_vits14_saliency")
photo = open_image(next(sample.path for sample in list_samples() if sample.path.stem == "two_dogs"))
once = map_of(extract(backbone, photo, size=224))
twice = on_grid_of(map_of(extract(backbone, photo, size=448)), once)
basis = fit_basis(twice.patches, valid=twice.valid)
pixels = np.hstack([to_rgb(basis, map.patches).numpy() for map in (once, twice)])
Image.fromarray(pixels).resize((pixels.shape[1] * 24, pixels.shape[0] * 24), Image.Resampling.NEAREST)

# %% [markdown]
# ## What to try next
# - `gramscope monitor runs`, tab "Gram teacher": candidates of a run of yours, and the next stage written for you.
# - `gramscope train dense`, `decay`, `heal`: what you see here, in a quarter to half an hour on two cores.
