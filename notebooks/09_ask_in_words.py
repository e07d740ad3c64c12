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
# # Where is the animal?
# A vision model that has never read a word can be taught to be asked: it stays frozen, and a small head on top of it
# learns, beside a reader of text, which caption goes with which photograph (paper, section 5.3). No caption says where
# anything is. Does the model find out all the same?

# %%
import tempfile
from pathlib import Path

import numpy as np

from workbench.ask import load_asker
from workbench.images import list_samples
from workbench.widgets import AskView

asker = load_asker()
asker.numbers["sentence"]

# %% [markdown]
# ## Ask
# Type a phrase and press Enter. The map shows how alike each patch and the phrase are, on one scale for all photos;
# below the map stand the photographs, those that show the phrase best first.

# %%
names = ("cat_bengal", "two_dogs", "sunflower_2", "mountains_sheep", "coffee_cup")
photos = [sample.path for sample in list_samples() if sample.path.stem in names]
view = AskView(asker, photos, size=448)
view.ask("an animal", "a rocky hill", contrast=["the sky"])
view

# %% [markdown]
# The same in Python:

# %%
[(name, round(cosine, 3)) for name, cosine in view.ranking("a cup on a table")]

# %% [markdown]
# ## A cosine alone says little
# Is 0.3 much? Against other phrases it becomes a share: softmax over all of them, at the temperature that the model was
# trained with. A contrast is a phrase that takes part in it and is not looked for.

# %%
cosines, share = view.cosines("an animal"), view.share("an animal")
lowest_and_highest = {"cosine": np.nanquantile(cosines, [0, 1]), "share": np.nanquantile(share, [0, 1])}
{name: values.round(3).tolist() for name, values in lowest_and_highest.items()}

# %% [markdown]
# ## Which word does it?
# Leave a word out and see by how much the best patches fall: the view writes it below the phrases. Do colours count, or
# only the things?

# %%
view.ask("a red cup on a wooden table")
phrase = asker.phrase("a red cup on a wooden table")
look = view.photos[[path.stem for path in photos].index("coffee_cup")].look
best = (look.unit @ phrase.patch).flatten().topk(40).indices
fall = [(word, look.unit @ (phrase.patch - without)) for word, without in phrase.without]
[(word, round(float(by.flatten()[best].mean()), 3)) for word, by in fall]

# %% [markdown]
# ## What each place is most likely
# With several phrases every place has a likeliest one. That is segmentation without a single mask, and on this model a
# rough one: it read a thousand photographs, others read a billion.

# %%
view.ask("an animal", "a plant", "a building", contrast=["the sky"])
view.show = "labels"
view

# %% [markdown]
# ## Take it home

# %%
path = view.save(Path(tempfile.mkdtemp()) / "ask.html")
f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, opens without Python"

# %% [markdown]
# ## What to try next
# - The same phrases with templates on and off: which ones change?
# - A phrase that is nowhere. How high does its map go, and how would you notice?
# - Your own captions: `core/text/config.py` has the recipe, `python -m core.text.train RUN` trains it.
