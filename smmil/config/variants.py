"""Variants: one method with one argument at another value, the rows of the ablation figures (paper, Section 5.3.2).

A sweep of the configuration, `{method: smap_early, argument: alpha, values: [0.1, 0.9]}`, gives the variants
`smap_early__alpha_0p1` and `smap_early__alpha_0p9`. Every later stage treats a variant as a method: it has runs,
predictions and metrics under its own name.
"""

from dataclasses import dataclass

SEPARATOR = "__"
Value = float | bool | str

# values of a method without options (paper, Section 5 and Appendix B)
DEFAULTS: dict[str, Value] = {"alpha": "trainable", "T": 10.0, "spectral_norm": True}
_SPELLED = {"t": "T"}
_SYMBOLS = {"alpha": "α", "spectral_norm": "spectral norm", "small_bags": "small bags"}


@dataclass(frozen=True)
class Variant:
    """One value of one argument of one method; the argument as the class of the method spells it."""

    method: str
    argument: str
    value: Value

    @property
    def name(self) -> str:
        """Name of runs and files, restricted to the characters of a rule's wildcard: `smap_early__alpha_0p1`."""
        text = f"{self.value:g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.method}{SEPARATOR}{self.argument}_{text}".lower().replace(".", "p").replace("-", "m")

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """Parse a name such as `smap_early__alpha_0p1` or `smtap__spectral_norm_false`; ValueError for any other."""
        method, _, rest = name.partition(SEPARATOR)
        argument, _, text = rest.rpartition("_")
        if not method or not argument:
            raise ValueError(f"{name!r}: not a variant, expected method{SEPARATOR}argument_value")
        # Names of files are in lower case, and only T is not.
        argument = _SPELLED.get(argument, argument)
        if text in ("true", "false"):
            return cls(method, argument, text == "true")
        try:
            return cls(method, argument, float(text.replace("p", ".").replace("m", "-")))
        except ValueError:
            return cls(method, argument, text)

    @property
    def label(self) -> str:
        """Argument and value as figures and tables show them: `α = 0.1`, `T exact`, `no spectral norm`."""
        symbol = _SYMBOLS.get(self.argument, self.argument)
        if isinstance(self.value, bool):
            return symbol if self.value else f"no {symbol}"
        return f"{symbol} {self.value}" if isinstance(self.value, str) else f"{symbol} = {self.value:g}"


def base_method(name: str) -> str:
    """Return the method of a variant; any other name is returned unchanged."""
    return name.split(SEPARATOR)[0]


def value_of(method: str, argument: str, *, released: bool = False) -> Value:
    """Return the value of `alpha`, `T` or `spectral_norm` in a row of a sweep, of a method or a variant.

    In the `released` code spectral normalisation is off by default.
    """
    if SEPARATOR in method and (variant := Variant.parse(method)).argument == argument:
        return variant.value
    return False if argument == "spectral_norm" and released else DEFAULTS[argument]
