"""The names of tables and figures, and the rows that the paper fixes for its ablations."""

from __future__ import annotations

Pairing = tuple[str, str, str]


# table -> block -> rows, in the paper's order; best and second-best values are marked within a block
BLOCKS: dict[str, dict[str, tuple[str, ...]]] = {
    "table3": {
        "Sm without the transformer": ("smap_early", "smap_mid", "smap_late", "abmil"),
        "Sm with the transformer": ("smtap", "smt_ap", "t_smap", "t_ap"),
    },
    "table4": {"CLAM": ("clam", "smclam"), "DSMIL": ("dsmil", "smdsmil"), "DFTD-MIL": ("dftd", "smdftd")},
    "table5": {
        "Without global interactions": ("smap_early", "abmil_penalty", "abmil"),
        "With global interactions": ("smtap", "t_penalty", "t_ap"),
    },
}


TABLES = (*(f"table{n}" for n in range(1, 11)), "resources", "comparisons")


# histograms, maps, sweeps of alpha, of spectral normalisation and of the steps, critical differences, learning curves
FIGURES = ("fig4", "fig5", "fig6a", "fig6b", "fig7", "fig12", "cd", "curves")


SWEPT = {"fig6a": "alpha", "fig12": "alpha", "fig6b": "spectral_norm", "fig7": "T"}


# Table 4 of the paper shows one dataset; without it, all trained datasets are shown
ONLY_KIND = {"table4": "camelyon16"}


EVERY_ENCODER = ("table6", "table7", "table8", "table9", "table10", "resources")


# with one feature extractor, a table of every extractor -> the table that has its numbers, too
REPEATS = {"table7": "table1", "table8": "table1", "table9": "table2", "table10": "table2"}
