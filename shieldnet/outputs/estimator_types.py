"""What an estimator says that it is: a classifier, a regressor, a clusterer, ..."""

from typing import Any


def type_of(estimator: Any) -> str | None:
    """Returns the type that an estimator states, or None.

    It is read from ``_estimator_type`` and the tags of scikit-learn; of a pipeline or a search that
    states none, from its last step or best estimator.
    """
    for stated in (_attribute(estimator), _tag(estimator)):
        if stated is not None:
            return stated
    inner = _inner(estimator)
    return None if inner is None else type_of(inner)


def _attribute(estimator: Any) -> str | None:
    stated = getattr(estimator, "_estimator_type", None)
    return stated if isinstance(stated, str) else None


def _tag(estimator: Any) -> str | None:
    tags = getattr(estimator, "__sklearn_tags__", None)
    if not callable(tags):
        return None
    try:
        stated = getattr(tags(), "estimator_type", None)
    except (AttributeError, TypeError, ValueError):  # of a class that lacks scikit-learn's base
        return None
    return stated if isinstance(stated, str) else None


def _inner(estimator: Any) -> Any:
    steps = getattr(estimator, "steps", None)
    if isinstance(steps, list) and steps and isinstance(steps[-1], tuple):
        return steps[-1][-1]
    return getattr(estimator, "best_estimator_", None)
