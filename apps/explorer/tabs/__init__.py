"""One module a tab: a `title` and a `build(viewer, controls)` that lays it out and wires it."""

from types import ModuleType

from apps.explorer.tabs import about, ask, follow, large, pca, similarity, training

TABS: dict[str, ModuleType] = {
    "similarity": similarity,
    "pca": pca,
    "follow": follow,
    "ask": ask,
    "large": large,
    "training": training,
    "about": about,
}
