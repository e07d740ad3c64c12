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
# # Does the same colour mean the same part?
# The three directions in which patches differ most, as red, green and blue, draw parts that nobody named. But every
# photograph has three directions of its own. When do two colours speak of the same thing?

# %%
from PIL import Image

from core.dense.color import align, fit_basis, foreground
from workbench import load, look_at, make_pack
from workbench.images import list_samples
from workbench.widgets import PatchCloud, Similarity

backbone = load("dinov2_vits14_saliency")
samples = {sample.path.stem: sample.path for sample in list_samples()}
looks = [look_at(samples[name], backbone, size=448) for name in ("cat_bengal", "cat_abyssinian_1", "cat_chelsea")]
colors = [{"pack": index, "show": "pca"} for index in range(3)]

Similarity(*looks, panes=colors)

# %% [markdown]
# ## One basis for all
# Each photograph above has colours of its own: they compare patches within one picture, and nothing across. Fitted on
# all patches of the three together and then kept, the axes and their limits are the same everywhere.

# %%
maps, valid = [look.features.patches for look in looks], [look.valid for look in looks]
shared = fit_basis(maps, valid=valid)
Similarity(*[make_pack(look, basis=shared) for look in looks], panes=colors)

# %%
[f"{share:.0%}" for share in shared.explained.tolist()]  # of the variance, in red, green and blue

# %% [markdown]
# ## Only the cats
# The largest difference is that of cat and room, and it takes a whole colour. The first component tells the two apart;
# a basis of the cats alone has all three colours for their parts.

# %%
cats = [foreground(look.features.patches, valid=look.valid) for look in looks]
parts = fit_basis(maps, valid=valid, foreground=cats)
Image.fromarray(looks[0].colors(parts, hidden=~cats[0]))

# %%
Image.fromarray(looks[1].colors(parts, hidden=~cats[1]))

# %% [markdown]
# ## Another layer
# Axes of two layers have nothing to do with one another, so their colours do not either. But the patches are the same:
# turned so that their scores agree best, the colours can be compared. From left to right: layer 6 in colours of its
# own, the same turned towards layer 12, and layer 12.

# %%
late, early = looks[0], look_at(samples["cat_bengal"], backbone, size=448, layer=5)
turned, residual = align(early.basis, early.features.patches, late.basis, late.features.patches, valid=late.valid)
Similarity(make_pack(early, basis=early.basis), make_pack(early, basis=turned), late, panes=colors)

# %%
f"{residual:.2f} of the colours of layer 12 are missing in layer 6: 0 is a copy, 1 has nothing in common"

# %% [markdown]
# ## All patches as points
# Three colours keep three directions of 384. The cloud keeps who is near whom instead: drag a lasso around some points
# and see where their patches are. Do the cats' faces lie together? (The first cloud of a session takes a while.)

# %%
cloud = PatchCloud(*looks, color_by="pca")
cloud

# %% [markdown]
# ## What to try next
# - Lasso an island of points, then look at `cloud.mask(0)`.
# - Put a dog among the cats: which of its parts get the colours of theirs?
# - `parts` instead of `shared` in the second view: what becomes of the room?
