"""What the names of a quality stand for: how far a task's outputs may be from its fine-tune's."""

__all__ = ["QUALITIES", "TOLERABLE"]

QUALITIES = {"small": 0.21, "balanced": 0.078, "high": 0.048}
"""How far outputs may be from the fine-tune's, in units of how far the base's are, as `divergence` foretells it: by
name. See `benchmarks/README.md`."""
TOLERABLE = 0.25
"""Beyond this it is said."""
