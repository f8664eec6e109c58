"""Rows of the ablation figures: one argument of one method at other values (paper, Section 5.3.2 and Appendix B.3).

A sweep of the configuration, `{method: smap_early, argument: alpha, values: [0.1, 0.9]}`, gives the variants
`smap_early__alpha_0p1` and `smap_early__alpha_0p9`. A variant is a method to everything downstream: it has runs,
predictions and metrics of its own under its name.
"""

from dataclasses import dataclass

SEPARATOR = "__"


@dataclass(frozen=True)
class Variant:
    """One value of one argument of one method.

    Attributes:
        method: key of `smmil.methods_table.METHODS`.
        argument: argument of the method, as its class spells it.
        value: what it gets.
    """

    method: str
    argument: str
    value: float | int | str | bool

    @property
    def name(self) -> str:
        """Name of runs and files: letters of a rule's wildcard only, e.g. `smap_early__alpha_0p1`."""
        text = f"{self.value:g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.method}{SEPARATOR}{self.argument}_{text}".lower().replace(".", "p").replace("-", "m")


def base_method(name: str) -> str:
    """The method a row belongs to: a variant's own method, any other name unchanged."""
    return name.split(SEPARATOR)[0]
