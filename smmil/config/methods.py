"""How every method is presented in tables and figures; the order of `METHODS` is the order of the tables.

The two groups are the paper's (Section 5): methods with and without a block that models global dependencies. Mean ranks
and the marks of the best and second-best values are taken within a group.
"""

from typing import NamedTuple

from smmil.config.variants import SEPARATOR, Variant, base_method

WITHOUT_GLOBAL = "Without global interactions"
WITH_GLOBAL = "With global interactions"
GROUPS: tuple[str, str] = (WITHOUT_GLOBAL, WITH_GLOBAL)
PROPOSED = "◆"


class Method(NamedTuple):
    """Presentation of one method.

    Attributes:
        name: its name in the paper.
        group: one of `GROUPS`.
        proposed: whether the paper proposes it.
        family: methods of one family share a colour; "" = a family of its own.
    """

    name: str
    group: str
    proposed: bool
    family: str = ""


METHODS: dict[str, Method] = {
    "smap_early": Method("SmAP", WITHOUT_GLOBAL, True, "sm"),
    "smap_mid": Method("SmAP-mid", WITHOUT_GLOBAL, True, "sm"),
    "smap_late": Method("SmAP-late", WITHOUT_GLOBAL, True, "sm"),
    "abmil": Method("ABMIL", WITHOUT_GLOBAL, False),
    "abmil_gated": Method("ABMIL, gated", WITHOUT_GLOBAL, False, "abmil"),
    "clam": Method("CLAM", WITHOUT_GLOBAL, False),
    "clam_mb": Method("CLAM-MB", WITHOUT_GLOBAL, False, "clam"),
    "dsmil": Method("DSMIL", WITHOUT_GLOBAL, False),
    "dftd": Method("DFTD-MIL", WITHOUT_GLOBAL, False),
    "dftd_maxmin": Method("DFTD-MIL, MaxMinS", WITHOUT_GLOBAL, False, "dftd"),
    "dftd_max": Method("DFTD-MIL, MaxS", WITHOUT_GLOBAL, False, "dftd"),
    "deepgraphsurv": Method("DeepGraphSurv", WITHOUT_GLOBAL, False),
    "pathgcn": Method("PathGCN", WITHOUT_GLOBAL, False),
    "smclam": Method("SmCLAM", WITHOUT_GLOBAL, True, "clam"),
    "smdsmil": Method("SmDSMIL", WITHOUT_GLOBAL, True, "dsmil"),
    "smdftd": Method("SmDFTD-MIL", WITHOUT_GLOBAL, True, "dftd"),
    "abmil_penalty": Method("ABMIL+PENALTY", WITHOUT_GLOBAL, False, "abmil"),
    "mean_pool": Method("Mean pooling", WITHOUT_GLOBAL, False),
    "max_pool": Method("Max pooling", WITHOUT_GLOBAL, False),
    "smtap": Method("SmTAP", WITH_GLOBAL, True, "sm"),
    "t_ap": Method("T+AP", WITH_GLOBAL, False, "abmil"),
    "smt_ap": Method("SmT+AP", WITH_GLOBAL, True, "sm"),
    "t_smap": Method("T+SmAP", WITH_GLOBAL, True, "sm"),
    "transmil": Method("TransMIL", WITH_GLOBAL, False),
    "setmil": Method("SETMIL", WITH_GLOBAL, False),
    "gtp": Method("GTP", WITH_GLOBAL, False),
    "camil": Method("CAMIL", WITH_GLOBAL, False),
    "iibmil": Method("IIB-MIL", WITH_GLOBAL, False),
    "t_penalty": Method("T+PENALTY", WITH_GLOBAL, False, "abmil"),
}


def display_name(key: str) -> str:
    """Return the name of a method as the paper writes it; an unknown key is returned unchanged.

    A variant is its method and the argument: `smap_early__alpha_0p1` is "SmAP, α = 0.1".
    """
    return _label(key, "")


def marked_name(key: str) -> str:
    """Return the display name with ◆ after a method that the paper proposes."""
    return _label(key, f" {PROPOSED}")


def _label(key: str, mark: str) -> str:
    base = base_method(key)
    if base not in METHODS:
        return key
    name = METHODS[base].name + (mark if METHODS[base].proposed else "")
    return f"{name}, {Variant.parse(key).label}" if SEPARATOR in key else name


def group_of(key: str) -> str:
    """Return the group of a method or variant.

    Raises:
        KeyError: an unknown method.
    """
    return METHODS[base_method(key)].group
