"""Named complete runs: each a short function that returns a `Config`, listed in RECIPES.

official.py says what the release does, nano.py has the same three stages for two cores, laboratory.py breaks and heals
dense features, taught.py has students of frozen models. Several students at once are in `core.sets`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from core.config import Config, SourceConfig, TeacherConfig
from core.recipes.laboratory import decay, dense, heal, heal_without
from core.recipes.nano import nano_gram, nano_highres, nano_pretrain, smoke
from core.recipes.official import (
    vit7b_gram,
    vit7b_highres,
    vit7b_paper,
    vit7b_pretrain,
    vitl,
    vitl_imagenet1k,
)
from core.recipes.taught import embedded, embedded_highres

RECIPES: dict[str, Callable[[], Config]] = {
    "vitl": vitl,
    "vitl_imagenet1k": vitl_imagenet1k,
    "vit7b_pretrain": vit7b_pretrain,
    "vit7b_paper": vit7b_paper,
    "vit7b_gram": vit7b_gram,
    "vit7b_highres": vit7b_highres,
    "smoke": smoke,
    "nano_pretrain": nano_pretrain,
    "nano_gram": nano_gram,
    "nano_highres": nano_highres,
    "dense": dense,
    "decay": decay,
    "heal": heal,
    "heal_without": heal_without,
    "embedded": embedded,
    "embedded_highres": embedded_highres,
}


def recipe(name: str) -> Config:
    """The configuration of a named run. Raises ValueError for an unknown name and lists the known ones."""
    if name not in RECIPES:
        raise ValueError(f"no recipe called {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]()


def summary(name: str) -> str:
    """The first sentence of a recipe's docstring."""
    return (RECIPES[name].__doc__ or "").strip().partition("\n")[0]


def with_data(config: Config, paths: Sequence[str]) -> Config:
    """The configuration reading these paths; as many as it had keep what was said of their shares."""
    if not paths:
        return config
    before = config.data.sources
    if len(before) == len(paths):
        kept = zip(before, paths, strict=True)
        sources = tuple(replace(source, path=path, kind="auto") for source, path in kept)
    else:
        sources = tuple(SourceConfig(path=path) for path in paths)
    return replace(config, data=replace(config.data, sources=sources))


def with_teachers(config: Config, names: Sequence[str]) -> Config:
    """The configuration learning the features of these frozen models; as many as it had keep what was said of them."""
    if not names:
        return config
    before = config.distill.features
    if len(before) == len(names):
        features = tuple(replace(teacher, name=name) for teacher, name in zip(before, names, strict=True))
    else:
        features = tuple(TeacherConfig(name=name) for name in names)
    return replace(config, distill=replace(config.distill, features=features))
