"""Recipes: how the encoder chooses the multi-task vector, the masks and the scales.

A closed table from id to class. A new recipe is one file and one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tallstore.recipes.base import Kind, Recipe, Statistic, Tile
from tallstore.recipes.emr import Emr
from tallstore.recipes.fit import Fit
from tallstore.recipes.mean import Mean
from tallstore.recipes.norm_match import GRID
from tallstore.recipes.solo import Solo
from tallstore.recipes.table import make
from tallstore.recipes.tall import Tall
from tallstore.recipes.tallmask import Lambda, TallMasked
from tallstore.recipes.ties_vector import Ties

__all__ = ["GRID", "RECIPES", "Kind", "Lambda", "Recipe", "Statistic", "TallMasked", "Tile", "make_recipe"]

RECIPES: Mapping[str, type[Recipe]] = MappingProxyType(
    {recipe.id: recipe for recipe in (Solo, Fit, Tall, Ties, Mean, Emr)}
)
"""Every recipe there is."""


def make_recipe(recipe_id: str, /, **options: object) -> Recipe:
    """A recipe by its id, with its options by name."""
    return make("recipe", RECIPES, recipe_id, options)
