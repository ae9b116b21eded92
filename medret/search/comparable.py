"""Which snapshots can be searched together: those that share recipes and aggregations, all centred or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medret.errors import UsageError
from medret.search.contents import Contents
from medret.snapshot import RecipeEntry


def shared_recipes(stores: Sequence[Contents]) -> list[RecipeEntry]:
    """The recipes that all snapshots have, in the order of the first.

    Raises UsageError if a model has different recipes, whose vectors cannot be compared, or if there is no such recipe.
    """
    first, *others = stores
    shared = {entry.model: entry for entry in first.manifest.recipes}
    for other in others:
        theirs = {entry.model: entry for entry in other.manifest.recipes}
        for model in shared.keys() & theirs.keys():
            ours, its = shared[model], theirs[model]
            if ours.digest != its.digest:
                raise UsageError(
                    f"{other.uri} cannot be searched together with {first.uri}: the recipe of {model} is {its.digest} "
                    f"there and {ours.digest} here ({', '.join(_differences(ours, its))}), and vectors of different "
                    "recipes cannot be compared; index one of them again with the recipe of the other"
                )
        if not shared.keys() & theirs.keys():
            raise UsageError(_apart(other, "models", list(shared), list(theirs)))
        shared = {model: entry for model, entry in shared.items() if model in theirs}
    return list(shared.values())


def shared_aggregations(stores: Sequence[Contents]) -> tuple[str, ...]:
    """The aggregations that all snapshots have, in the order of the first; raises UsageError if there is none."""
    shared = list(stores[0].manifest.aggregations)
    for other in stores[1:]:
        theirs = other.manifest.aggregations
        if not set(shared) & set(theirs):
            raise UsageError(_apart(other, "aggregations", shared, theirs))
        shared = [name for name in shared if name in theirs]
    return tuple(shared)


def check_centred(stores: Sequence[Contents], names: object) -> None:
    """Raise UsageError if the indices of some snapshots are centred and those of others are not. names: of all."""
    if len({contents.settings.centred for contents in stores}) > 1:
        raise UsageError(
            f"{names} cannot be searched together: the indices of some are centred, those of others are not; index "
            "one of them again with the settings of the other"
        )


def _apart(other: Contents, what: str, ours: Sequence[str], theirs: Sequence[str]) -> str:
    return (
        f"{other.uri} cannot be searched together with the stores before it: its {what} are {', '.join(theirs)}, "
        f"theirs {', '.join(ours)}; index one of them again with those of the other"
    )


def _differences(ours: RecipeEntry, theirs: RecipeEntry) -> Iterator[str]:
    for part in ("slices", "model"):
        here, there = ours.recipe[part], theirs.recipe[part]
        for name in dict.fromkeys([*here, *there]):
            if here.get(name) != there.get(name):
                yield f"{name} {there.get(name)} and {here.get(name)}"
