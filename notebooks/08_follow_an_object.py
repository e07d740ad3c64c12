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
# # Who says that this is still the dog?
# Mark an object in one frame of a video, and features alone carry the mark through the others: each patch asks the
# patches it resembles, in the first frame and in the last few, and takes over what they are. Nothing is trained.

# %%
import tempfile
from pathlib import Path

import torch

from core.dense.follow import Rules, grown
from core.dense.geometry import pixel_to_patch
from workbench import load
from workbench.clips import list_clips, open_clip
from workbench.widgets import FollowView

backbone = load("dinov2_vits14_saliency")
clip = open_clip(list_clips()[0].path, backbone, size=336, most=10)

# %% [markdown]
# ## Mark it
# Paint with the brush, draw a box, or let a region grow from a patch, then press Follow. Here it grows in Python: from
# a patch on the dog's back to all that hangs together with it and resembles it.

# %%
back = pixel_to_patch(clip.geometry, 370, 215)
dog = grown(clip.features[0].float(), back, threshold=0.6)
view = FollowView(clip, marks={0: dog.long()})
view.follow()
view

# %% [markdown]
# ## Ask who voted
# Hover a patch of a later frame. The small pictures are the frames that voted for it, with the patches that did. In
# Python the same, strongest first:

# %%
row, col = (view.found.masks[5] == 1).nonzero()[0].tolist()
[(vote.frame, vote.row, vote.col, round(vote.weight, 3)) for vote in view.votes(5, (row, col))]

# %% [markdown]
# ## Correct it
# Where it goes wrong, paint what is right: that frame then counts as marked, and only the frames after it change. Here
# a region grows once more, from the patch above.

# %%
again = grown(clip.features[5].float(), (row, col), threshold=0.5)
view.mark(5, (view.found.masks[5].bool() | again).long())
corrected = view.follow()
(corrected.masks.flatten(1) > 0).sum(1).tolist()  # patches of the dog in each frame

# %% [markdown]
# ## Other rules
# The features are at hand, so other settings take a moment. How many patches change when only the very best one votes?

# %%
alone = clip.follower.follow({0: dog.long()}, Rules(topk=1))
five = clip.follower.follow({0: dog.long()}, Rules(topk=5))
int(torch.count_nonzero(alone.masks != five.masks))

# %% [markdown]
# ## Take it home
# Masks as PNGs, a video in colours, and the view as one file that plays and shows votes without Python.

# %%
folder = Path(tempfile.mkdtemp())
saved = [view.save_masks(folder / "masks.zip"), view.save_video(folder / "dog.mp4"), view.save(folder / "dog.html")]
[f"{path.name}: {path.stat().st_size / 1e3:.0f} kB" for path in saved]

# %% [markdown]
# ## What to try next
# - Mark the woman as a second object, in the same frame or in a later one.
# - Temperature 1 lets all votes count alike. Where does the dog begin to leak?
# - A video of yours: `open_clip("mine.mp4", backbone, every=3)`.
