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
# # How does a cell become a training run on a cluster?
# A cell names a recipe, the place where it runs, and what is different from the recipe. It returns at once; what it
# leaves is a run's folder, and everything that is shown of the run is read from there.

# %%
from pathlib import Path
from tempfile import mkdtemp

from cluster import LAUNCHERS, find_target, submissions
from workbench.follow import report, sentence

# %load_ext workbench.magic
RUN = Path(mkdtemp()) / "first"

# %% [markdown]
# ## What would be submitted
# With `--dry-run` nothing is: here is the batch script for two nodes of a Slurm partition. A job that is told that its
# time is nearly up saves, leaves, and goes back into the queue by itself.

# %%
# %gramscope train smoke --on slurm:gpu --nodes 2 --minutes 120 --dry-run

# %% [markdown]
# ## On this machine
# The same line with `--on local`: a process of its own, which goes on when this kernel is gone. Settings stand in the
# cell by their dotted names. The card is live: state, pace, curves, and the maps of the same few images as they come.

# %%
# %%gramscope train smoke --on local --out {RUN}
steps = 12
run.checkpoint_every = 4
run.probe_every = 4

# %% [markdown]
# ## Found again
# A new kernel, another machine, the monitor: whoever knows the folder finds the run, because the state lies in it.
# (With `%gramscope attach RUN` this is a card again.)

# %%
[(each.number, each.target.name, each.handle["id"]) for each in submissions(RUN)]

# %%
sentence(report(RUN))

# %% [markdown]
# ## Every engine has the same words
# waiting, running, done, cancelled, failed, out of memory, node failed, out of time. One file a launcher, one line in a
# table; each can render, submit, say how a job stands, show its log, cancel it and queue it again.

# %%
list(LAUNCHERS), find_target("slurm:gpu").resources

# %% [markdown]
# ## What to try next
# - Press Cancel on the card, then Requeue: is there a gap in the curves?
# - Fork the run from step 4. What does the new run's `init.student` say?
# - Name your cluster in `~/.config/gramscope/targets.toml`, and put its name in place of `local`.
