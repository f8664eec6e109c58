"""How every method is shown: key -> (display name, group, proposed in the paper); the order is the order of the tables.

The two groups are the paper's (section 5): methods without a block that models global dependencies, and with one. Means
of ranks and best/second marks are taken inside a group. Nothing heavy is imported here: tables and pictures need no
torch.
"""

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


def display_name(key: str) -> str:
    """The name of a method as the paper writes it; an unknown key stands for itself."""
    return METHODS[key][0] if key in METHODS else key
