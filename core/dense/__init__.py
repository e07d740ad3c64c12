"""What one does with patch features, arrays in and arrays out: geometry, cosines, colours, references.

`extract` is not repeated here: as a name of this package the function would hide the module of that name.
"""

from core.dense.color import (
    Alignment,
    ColorBasis,
    align,
    fit_basis,
    foreground,
    load_basis,
    project,
    save_basis,
    shared_limits,
    to_rgb,
)
from core.dense.geometry import (
    Geometry,
    displayed_to_pixel,
    grid_box,
    grid_lines,
    patch_centre,
    patch_to_polygon,
    pixel_to_displayed,
    pixel_to_patch,
    plan,
    same_patch,
    stored_to_upright,
    upright_to_stored,
    valid_cells,
)
from core.dense.reference import NullCurves, Standing, histogram, null_curves, standing
from core.dense.similarity import Match, cosine_map, cosine_map_to, normalize, top_k, unit_patches

__all__ = [
    "Alignment",
    "ColorBasis",
    "Geometry",
    "Match",
    "NullCurves",
    "Standing",
    "align",
    "cosine_map",
    "cosine_map_to",
    "displayed_to_pixel",
    "fit_basis",
    "foreground",
    "grid_box",
    "grid_lines",
    "histogram",
    "load_basis",
    "normalize",
    "null_curves",
    "patch_centre",
    "patch_to_polygon",
    "pixel_to_displayed",
    "pixel_to_patch",
    "plan",
    "project",
    "same_patch",
    "save_basis",
    "shared_limits",
    "standing",
    "stored_to_upright",
    "to_rgb",
    "top_k",
    "unit_patches",
    "upright_to_stored",
    "valid_cells",
]
