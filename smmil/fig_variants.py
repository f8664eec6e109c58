"""What a variant of a sweep varies, from its metrics file or its name alone: `smap_early__alpha_0p1` -> alpha, 0.1."""

from collections.abc import Mapping
from typing import Any

from smmil.variants import SEPARATOR, base_method

Value = float | bool | str

# what a method uses where a configuration says nothing (paper, Section 5 and Appendix B); the released code never
# applied spectral normalisation (its builder and its pool disagree on the key)
DEFAULTS: dict[str, Value] = {"alpha": "trainable", "T": 10.0, "spectral_norm": True}
_SPELLED = {"t": "T"}
_SYMBOLS = {"alpha": "α", "T": "T", "spectral_norm": "spectral norm"}


def parse_variant(name: str) -> tuple[str, Value]:
    """Argument and value in the name of a variant.

    Args:
        name: e.g. `smap_early__alpha_0p1`, `smap_early__t_exact`, `smtap__spectral_norm_false`.

    Raises:
        ValueError: not the name of a variant.
    """
    base, separator, rest = name.partition(SEPARATOR)
    argument, underscore, text = rest.rpartition("_")
    if not separator or not underscore or not base or not argument:
        raise ValueError(f"{name!r}: not a variant, expected method{SEPARATOR}argument_value")
    argument = _SPELLED.get(argument, argument)
    if text in ("true", "false"):
        return argument, text == "true"
    try:
        return argument, float(text.replace("p", ".").replace("m", "-"))
    except ValueError:
        return argument, text


def value_of(method: str, argument: str, metrics: Mapping[str, Any] | None, *, released: bool = False) -> Value:
    """The value of an argument behind a row.

    Args:
        method: a method or a variant.
        argument: alpha, T or spectral_norm.
        metrics: the row's metrics object, whose `method_options` win; None = no run.
        released: whether spectral normalisation is off by default, as in the released code.

    Returns:
        A number, a flag, or "trainable" / "exact".
    """
    given = (metrics or {}).get("method_options") or {}
    if argument in given:
        value = given[argument]
        return value if isinstance(value, bool | str) else float(value)
    if SEPARATOR in method:
        name, found = parse_variant(method)
        if name == argument:
            return found
    if argument == "spectral_norm" and released:
        return False
    return DEFAULTS[argument]


def value_text(argument: str, value: Value) -> str:
    """As a panel's title says it: `α = 0.1`, `T exact`, `no spectral norm`."""
    symbol = _SYMBOLS.get(argument, argument)
    if isinstance(value, bool):
        return symbol if value else f"no {symbol}"
    return f"{symbol} {value}" if isinstance(value, str) else f"{symbol} = {value:g}"


def is_variant_of(name: str, method: str) -> bool:
    """Whether a row is a variant of a method."""
    return SEPARATOR in name and base_method(name) == method
