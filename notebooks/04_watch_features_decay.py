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
# # What becomes of the patches while a model trains?
# A small model first learned the patches of a better one (`dense`, 200 steps), so that it had maps to lose. Then it
# trained by itself, with DINO alone (`decay`, 500 steps). At every checkpoint it looked at the same four photographs.
# Pin a patch, move through its life, and see what the loss does not tell.

# %%
import numpy as np

from workbench.plots import gram_sheet, moment_curves
from workbench.runs import RunSeries, shipped_run
from workbench.widgets import GramLens, TimeSlider, TokenXray

series = RunSeries.of([shipped_run("dense"), shipped_run("decay")])
cat = series.images.index("cat_bengal.jpg")

view = TimeSlider(series, image=cat, time=2, point=(5, 9))
view

# %% [markdown]
# ## Better and worse at once
# k-NN accuracy asks whether whole pictures of a kind lie together. In-context mIoU asks whether patches of one picture
# find an animal in another; object AUC, whether a patch of an animal finds the rest of it. Both have the masks of
# photographs that the run never saw. The last curve needs no labels at all: how much every patch resembles CLS, which
# stands for the whole picture.

# %%
titles = [f"{moment.run.name} {moment.step}" for moment in series.moments]
curves = {curve["name"]: curve for curve in view.curves}
moment_curves(titles, [curves[name] for name in ("knn", "miou", "objects", "cls_patch_cosine")])

# %% [markdown]
# ## The best and the last map
# The same patch asks in both; between them stands what has changed.

# %%
best = int(np.argmax(series.proxy()))
TimeSlider(series, image=cat, time=len(series) - 1, against=best, compare="difference", point=(5, 9))

# %% [markdown]
# ## Every patch with every other
# A map is one row of the Gram matrix. Here are all rows at every checkpoint: squares are parts whose patches agree.

# %%
gram_sheet(series, cat)

# %% [markdown]
# Brush a part of the photograph and its rows light up in the matrix, and the other way round. Choose the order by
# cluster: then parts stand together. The dial under it is no checkpoint; it makes collapse by hand.

# %%
early, late = view.table[best][cat], view.table[-1][cat]
GramLens(early, late, pack=1, against=0, titles=["the best", "the last"], order="cluster")

# %% [markdown]
# ## Who holds the picture together?
# CLS and the registers are tokens too. What a patch shares with CLS it says of the whole picture, not of its place.

# %%
TokenXray(late)

# %% [markdown]
# ## And a model that begins from nothing?
# The same architecture from scratch, 4500 steps of DINO, iBOT and KoLeo. Here the curves do not agree: local structure
# (LDS) falls, and patches of an animal find the rest of it ever better. So small and young a model has nothing yet to
# forget: look at labels before you believe a curve without them.

# %%
scratch = RunSeries.of([shipped_run("nano_pretrain")])
curves = {curve["name"]: curve for curve in TimeSlider(scratch).curves}
titles = [f"{moment.step}" for moment in scratch.moments]
moment_curves(titles, [curves[name] for name in ("knn", "miou", "objects", "local_distant")])

# %% [markdown]
# ## What to try next
# - `view.save("decay.html")`: the slider in one file that opens without Python.
# - `TimeSlider("runs/yours")`: any run that was trained with `--run.probe-every 500`.
# - Which of the unlabelled curves turns first? The next notebooks anchor the model, and read a run of your own.
