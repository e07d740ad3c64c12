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
# # Why does the model call two patches alike?
# A cosine map answers one question: which patches point where this one points? Here the questions change: another
# patch, several, none like that one, another layer. The views are alive; move the pointer over a photograph.

# %%
import tempfile
from pathlib import Path

import numpy as np

from workbench import load, look_at
from workbench.images import list_samples
from workbench.widgets import Similarity

backbone = load("dinov2_vits14_saliency")
samples = {sample.path.stem: sample.path for sample in list_samples()}
cat, other = (look_at(samples[name], backbone, size=518) for name in ("cat_bengal", "cat_abyssinian_1"))

view = Similarity(cat, other, point=cat.cell_at((165, 105)))
view

# %% [markdown]
# ## Hover and pin
# A click pins a patch, and both photographs answer it. What you do there Python knows, and the other way round:
# click another patch, then run the next cell.

# %%
row, col = view.point
f"row {row}, column {col}: the best cosine in the other photograph is {np.nanmax(view.values(1)):.2f}"

# %% [markdown]
# ## Several patches, and what they are not
# Shift adds a patch, Alt subtracts one: the map is then a mean of cosines minus another. Two patches of the head minus
# one of the body: what makes them a cat cancels out, and the heads are left.

# %%
points = [(130, 75, 1), (205, 70, 1), (200, 230, -1)]  # x, y, plus or minus
queries = [{"image": cat.photo.digest, "x": x, "y": y, "sign": sign} for x, y, sign in points]
Similarity(cat, other, queries=queries, colormap="blue-white-red", limits=[-0.5, 0.5])

# %% [markdown]
# ## Is this cosine high?
# Under each map stand the cosines of random pairs of patches. The mask keeps what is above 95 % of them; drag it.

# %%
threshold = float(np.quantile(view.packs[0].null_same, 0.95))
Similarity(cat, other, point=view.point, threshold=threshold)

# %% [markdown]
# ## Two layers, one pointer
# The same weights half way up, beside the last layer. A point is a pixel of the photograph, so it is the same place in
# every pane, also in those of another model or another size.

# %%
early = look_at(samples["cat_bengal"], backbone, size=518, layer=5)
layers = Similarity(early, cat, point=early.cell_at((165, 105)))
layers

# %% [markdown]
# ## What changed on the way?
# Left the difference of the cosines: the cat gained, the room lost. Right that of their ranks, which see the order
# alone: the cat came first before, so little happens to it. What was sorted anew is the room.

# %%
panes = [{"pack": 1, "show": show, "other": 0} for show in ("difference", "rank")]
change = Similarity(early, cat, panes=panes, point=layers.point)
change

# %%
moved = np.nan_to_num(change.values(1))
row, col = map(int, np.unravel_index(moved.argmin(), moved.shape))
change.selection = [[1, row, col]]  # outlined in the view above
f"row {row}, column {col} has fallen behind {-moved[row, col]:.0%} of all patches"

# %% [markdown]
# ## Keep it, pass it on
# A saved view is one file that opens without Python and without a network. An address is shorter: it holds what was
# asked, and no picture; whoever has the same packs gets the same view.

# %%
page = layers.save(Path(tempfile.mkdtemp()) / "layers.html", title="Layer 6 and layer 12")
f"{page.stat().st_size / 1e6:.1f} MB in {page.name}; the address has {len(layers.to_url())} letters"

# %%
Similarity.from_url(layers.to_url(), *layers.packs)

# %% [markdown]
# ## What to try next
# - Pin an eye, then the other one with Shift. Does the pair find the eyes of the second cat better than one alone?
# - Choose "Swipe with" in the menu of a pane of the two layers.
# - `traitlets.link((view, "queries"), (layers, "queries"))`: a click in one view asks in both.
