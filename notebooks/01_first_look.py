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
# # Which patches does the model find alike?
# A self-supervised vision model cuts a photograph into patches and gives each one a direction in feature space.
# Nobody told it what an ear is. Do the ears of two cats point the same way all the same?

# %%
from PIL import Image

from workbench import load, look_at
from workbench.images import list_samples
from workbench.plots import cosine_histogram

backbone = load("dinov2_vits14_saliency")
samples = {sample.path.stem: sample.path for sample in list_samples()}
cat = look_at(samples["cat_bengal"], backbone, size=768)
cat.features.patches.shape  # rows, columns, channels

# %% [markdown]
# ## One patch asks
# We choose the patch under a pixel on the cat's face. Its cosine to every other patch is the map; the boxes are the
# best answers that are not its neighbours.

# %%
face = cat.cell_at((165, 105))
cosines = cat.similarity([face])
Image.fromarray(cat.picture(cosines, queries=[face], matches=cat.matches(cosines, [face])))

# %% [markdown]
# ## The same question, another cat
# Nothing is fitted: the direction of one patch of the first photograph is compared with all patches of the second.

# %%
other = look_at(samples["cat_abyssinian_1"], backbone, size=768)
across = cat.similarity_in(other, [face])
Image.fromarray(other.picture(across, matches=other.matches(across)))

# %% [markdown]
# ## Is this cosine high?
# A cosine of 0.6 means little by itself. The lines say how alike random pairs of patches are.

# %%
cosine_histogram(cosines, cat.null, mark=cat.matches(cosines, [face], k=1)[0].cosine)

# %% [markdown]
# ## All patches at once
# The three directions in which the patches differ most, as red, green and blue. The colours of the first cat are kept
# for the second one, so that the same colour means the same thing.

# %%
Image.fromarray(cat.colors())

# %%
Image.fromarray(other.colors(cat.basis))

# %% [markdown]
# ## What to try next
# - Ask from the tail or from the blanket. Which answers surprise you?
# - Add `layer=3` to `look_at`: what do early layers find alike?
# - The same with a click instead of a pixel: `gramscope app`.
