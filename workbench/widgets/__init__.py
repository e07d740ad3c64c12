"""Views of patch features for notebooks; the app and saved files draw with the same modules."""

from workbench.widgets.ask import AskView
from workbench.widgets.cloud import PatchCloud
from workbench.widgets.follow import FollowView
from workbench.widgets.gram import GramLens
from workbench.widgets.similarity import Similarity
from workbench.widgets.time import TimeSlider
from workbench.widgets.xray import TokenXray

__all__ = ["AskView", "FollowView", "GramLens", "PatchCloud", "Similarity", "TimeSlider", "TokenXray"]
