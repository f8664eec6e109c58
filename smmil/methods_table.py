"""How every method is shown: key -> (display name, group, proposed in the paper); the order is the order of the tables.

The two groups are the paper's (section 5): methods without a block that models global dependencies, and with one. Means
of ranks and best/second marks are taken inside a group. Nothing heavy is imported here: tables and pictures need no
torch.
"""

import re

from smmil.variants import SEPARATOR, base_method

WITHOUT_GLOBAL = "Without global interactions"
WITH_GLOBAL = "With global interactions"
GROUPS: tuple[str, str] = (WITHOUT_GLOBAL, WITH_GLOBAL)

METHODS: dict[str, tuple[str, str, bool]] = {
    "smap_early": ("SmAP", WITHOUT_GLOBAL, True),
    "smap_mid": ("SmAP-mid", WITHOUT_GLOBAL, True),
    "smap_late": ("SmAP-late", WITHOUT_GLOBAL, True),
    "abmil": ("ABMIL", WITHOUT_GLOBAL, False),
    "abmil_gated": ("ABMIL, gated", WITHOUT_GLOBAL, False),
    "clam": ("CLAM", WITHOUT_GLOBAL, False),
    "clam_mb": ("CLAM-MB", WITHOUT_GLOBAL, False),
    "dsmil": ("DSMIL", WITHOUT_GLOBAL, False),
    "dftd": ("DFTD-MIL", WITHOUT_GLOBAL, False),
    "dftd_maxmin": ("DFTD-MIL, MaxMinS", WITHOUT_GLOBAL, False),
    "dftd_max": ("DFTD-MIL, MaxS", WITHOUT_GLOBAL, False),
    "deepgraphsurv": ("DeepGraphSurv", WITHOUT_GLOBAL, False),
    "pathgcn": ("PathGCN", WITHOUT_GLOBAL, False),
    "smclam": ("SmCLAM", WITHOUT_GLOBAL, True),
    "smdsmil": ("SmDSMIL", WITHOUT_GLOBAL, True),
    "smdftd": ("SmDFTD-MIL", WITHOUT_GLOBAL, True),
    "abmil_penalty": ("ABMIL+PENALTY", WITHOUT_GLOBAL, False),
    "mean_pool": ("Mean pooling", WITHOUT_GLOBAL, False),
    "max_pool": ("Max pooling", WITHOUT_GLOBAL, False),
    "smtap": ("SmTAP", WITH_GLOBAL, True),
    "t_ap": ("T+AP", WITH_GLOBAL, False),
    "smt_ap": ("SmT+AP", WITH_GLOBAL, True),
    "t_smap": ("T+SmAP", WITH_GLOBAL, True),
    "transmil": ("TransMIL", WITH_GLOBAL, False),
    "setmil": ("SETMIL", WITH_GLOBAL, False),
    "gtp": ("GTP", WITH_GLOBAL, False),
    "camil": ("CAMIL", WITH_GLOBAL, False),
    "iibmil": ("IIB-MIL", WITH_GLOBAL, False),
    "t_penalty": ("T+PENALTY", WITH_GLOBAL, False),
}


# arguments of sweeps as figures and tables write them; two words where the values are true and false
ARGUMENTS: dict[str, str | tuple[str, str]] = {
    "alpha": "α",
    "t": "T",
    "spectral_norm": ("with spectral normalisation", "without spectral normalisation"),
}


def display_name(key: str) -> str:
    """The name of a method as the paper writes it; an unknown key stands for itself.

    A variant (`smmil.variants`) is its method and the argument: `smap_early__alpha_0p1` is "SmAP, α = 0.1".
    """
    method, _, point = key.partition(SEPARATOR)
    if method not in METHODS:
        return key
    return METHODS[method][0] if not point else f"{METHODS[method][0]}, {_argument(point)}"


def group_of(key: str) -> str:
    """The group of a method or variant.

    Raises:
        KeyError: an unknown method.
    """
    return METHODS[base_method(key)][1]


def _argument(point: str) -> str:
    """`alpha_0p1` -> "α = 0.1", `spectral_norm_false` -> "without spectral normalisation"."""
    argument, _, value = point.rpartition("_")
    shown = ARGUMENTS.get(argument, argument)
    if isinstance(shown, tuple):
        return shown[value != "true"]
    if re.fullmatch(r"m?\d+(p\d+)?(em?\d+)?", value):
        value = value.replace("p", ".").replace("m", "-")
    return f"{shown} = {value}"
