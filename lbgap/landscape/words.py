"""What the results of landscapes say of themselves when they are printed."""

from __future__ import annotations

from lbgap.result import Result


def footing(result: Result) -> tuple[str, str]:
    """The last two lines of a printed result: what it depends on, and its status."""
    s = result.settings
    tested = f" and {s['test_samples']:,} test samples" if "test_samples" in s else " samples"
    return (
        f"  {s['n']:,} parameters, {s['samples']:,}{tested}, {s['loss']}, batch-norm {s['batch_norm']}, "
        f"{result.evaluations:.4g} evaluations, {result.seconds:.2f} s, {s['precision']} on {s['device']}",
        f"  {result.status}",
    )
