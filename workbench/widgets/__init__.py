"""Views of patch features for notebooks; the app and saved files draw with the same modules."""

from workbench.widgets.cloud import PatchCloud
from workbench.widgets.follow import FollowView
from workbench.widgets.similarity import Similarity

__all__ = ["FollowView", "PatchCloud", "Similarity"]
