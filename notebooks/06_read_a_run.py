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
# # Is this run still worth its hours?
# A loss that falls says that training runs, not that its features get better. What to read instead, on a run that
# comes with the project; put the folder of your own in its place.

# %%
from IPython.display import HTML

from workbench.plots import moment_curves, run_curves
from workbench.runs import RunSeries, shipped_run
from workbench.scorecards import alarm_words, curves_of, scorecard_html

run = shipped_run("decay")  # or open_run("runs/yours")
series = RunSeries.of([shipped_run("dense"), run])  # what it began from, and its checkpoints
run

# %% [markdown]
# ## What training tells
# Terms of the loss, unweighted; iBOT is told though this run does not learn it. All fall or stay: none of them turns
# where dense quality does.

# %%
run_curves([run])

# %% [markdown]
# ## What labels tell
# k-NN of whole pictures and in-context mIoU of patches, at each checkpoint, on images that were held out.

# %%
knn, masks = run.evaluation("knn")["top1_k10"], run.evaluation("incontext")["miou"]
{step: (round(knn[step], 3), round(masks[step], 3)) for step in sorted(masks)}

# %% [markdown]
# ## What can be told without labels
# Each metric with what it does in decay, its mean over the probe images and the interval of that mean (bootstrap over
# images), and how well it agreed with the labelled proxy in this run (Kendall's tau over checkpoints: 1 the same order,
# -1 the opposite one). A metric that agreed here need not agree in yours; four probes make wide intervals. RankMe and
# LiDAR look at CLS alone: they rise while the maps decay.

# %%
HTML(scorecard_html(series))

# %% [markdown]
# ## Since when, and on which pictures?
# An alarm is raised when a metric is worse than at its best by more than chance over images explains.

# %%
alarms = {line.name: alarm_words(line.alarm, series) for line in series.scorecard() if line.alarm}
alarms

# %% [markdown]
# ## The curves under one another

# %%
curves = {curve["name"]: curve for curve in curves_of(series)}
moment_curves(
    [f"{moment.run.name} {moment.step}" for moment in series.moments],
    [curves[name] for name in ("miou", "local_distant", "dse")],
)

# %% [markdown]
# ## What to try next
# - `gramscope monitor runs` shows all of this live, and picks a Gram teacher for the next stage.
# - `gramscope doctor runs/yours` before you give a run more hours.
# - Train with `--run.masks FOLDER` to have a labelled proxy of your own images.
