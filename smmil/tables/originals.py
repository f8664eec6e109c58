"""The original of every method: paper, code, what ours does differently, and how that was checked.

`original_of` finds the entry of a method. `python -m smmil.methods` prints them as `docs/reference/methods.md`; tables
name the departures of the methods that they show.
"""

from dataclasses import dataclass

from smmil.config.methods import get_method


@dataclass(frozen=True)
class Departure:
    """One difference from an original that was chosen.

    Attributes:
        ours: what this project does, and what the original does.
        why: the reason.
        option: what restores the original, "" = nothing does.
        note: the same in a few words for the notes under a table, "" = too small to be mentioned there.
    """

    ours: str
    why: str
    option: str = ""
    note: str = ""


@dataclass(frozen=True)
class Original:
    """Where a method comes from.

    Attributes:
        paper: authors, venue and year.
        code: repository and commit, "" = none that could be compared.
        check: what it was compared with apart from golden fixtures, and to what error.
        fixtures: prefixes of files in `tests/golden`, numbers that the original gave.
        departures: differences that were chosen.
    """

    paper: str
    code: str = ""
    check: str = ""
    fixtures: tuple[str, ...] = ()
    departures: tuple[Departure, ...] = ()


_ONE_EMBEDDING = "all methods share the paper's embedding"
_RELU = Departure(
    "the embedding ends in GELU, there in ReLU",
    _ONE_EMBEDDING,
    "`embed_act: relu`",
    "GELU after the embedding for ReLU",
)
_EXTRA = Departure(
    "the common Linear + GELU in front, where the original feeds the features in",
    _ONE_EMBEDDING,
    "",
    "a common Linear + GELU in front",
)
_AUTHORS = "by-lin/SmMIL (a copy of Franblueee/SmMIL, all commits by its authors)"
_SM = "Castro-Macías et al., NeurIPS 2024"
_PLACE = "neither the paper's text nor its code says where Sm is placed"
_PLACED = "place of Sm chosen here"

ORIGINALS: dict[str, Original] = {
    "sm": Original(_SM, _AUTHORS, "the plain steps of Equation 8 and a dense solution", ("sm", "smap", "graphs")),
    "smt": Original(_SM, _AUTHORS, "torchmil", ("t_ap", "t_smap", "smt_ap", "smtap")),
    "abmil": Original("Ilse et al., ICML 2018", _AUTHORS, "torchmil", ("abmil",)),
    "clam": Original(
        "Lu et al., Nature Biomedical Engineering 2021",
        "mahmoodlab/CLAM 53e2409",
        "hand-computed instance losses",
        ("clam",),
        (
            _RELU,
            Departure(
                "bags below 2k instances use k = N / 2 in the instance loss",
                "there such a bag raises an error or labels an instance both ways",
            ),
        ),
    ),
    "dsmil": Original(
        "Li et al., CVPR 2021",
        "binli123/dsmil-wsi 80465ed",
        "torchmil",
        ("dsmil",),
        (
            _EXTRA,
            Departure(
                "initial weights are torch's defaults and there is no weight decay; there orthogonal weights and 5e-3",
                "one optimiser for all methods, as in the paper",
            ),
        ),
    ),
    "dftd": Original(
        "Zhang et al., CVPR 2022 (DTFD-MIL)",
        "hrzhang1123/DTFD-MIL 10964f4",
        "its formula for the instance score",
        ("dtfd",),
        (
            Departure(
                "the embedding ends in GELU and has a bias, there in ReLU without bias",
                _ONE_EMBEDDING,
                "`embed_act: relu` (the bias stays)",
                "GELU after the embedding for ReLU",
            ),
            Departure(
                "pseudo-bags are drawn with the seed of the run, in evaluation always the same ones",
                "equal calls give equal results",
            ),
        ),
    ),
    "transmil": Original(
        "Shao et al., NeurIPS 2021",
        "szc19990412/TransMIL 9d6aee5, nystrom-attention 0.0.14",
        fixtures=("transmil",),
        departures=(_RELU,),
    ),
    "setmil": Original(
        "Zhao et al., MICCAI 2022",
        "TencentAILabHealthcare/SETMIL 5455fb5",
        fixtures=("setmil",),
        departures=(
            _EXTRA,
            Departure(
                "tokens are the occupied cells of the bag's grid, numbered by its width; there a full grid that a "
                "5 x 5 convolution of stride 2 reduces",
                "every instance keeps a score of its own",
                note="no reduction of the grid",
            ),
        ),
    ),
    "gtp": Original(
        "Zheng et al., IEEE TMI 2022",
        "vkola-lab/tmi2022 6d72bfa",
        fixtures=("gtp",),
        departures=(
            _EXTRA,
            Departure(
                "the score is GraphCAM as computed; its maps there are rescaled to [0, 1] within each bag, times the "
                "probability",
                "rescaling within a bag leaves nothing to compare between bags",
            ),
        ),
    ),
    "camil": Original(
        "Fourkioti et al., ICLR 2024",
        "olgarithmics/ICLR_CAMIL 5f8ef57",
        "torchmil (attention among neighbours, fusion, pooling)",
        ("camil",),
        (
            _EXTRA,
            Departure(
                "the published equations (values from t, fusion, attention from t); the released code computes others",
                "the paper is what a reader checks",
                "`code: released_without_convolution`",
                "the published equations",
            ),
            Departure(
                "values are convolved along the sequence, (33, 1) per head; there a kernel of (33, 1, 8, 64) runs "
                "across the heads",
                "the layer that nystrom-attention defines",
            ),
        ),
    ),
    "iibmil": Original(
        "Ren et al., MICCAI 2023",
        "TencentAILabHealthcare/IIB-MIL a354ec6",
        fixtures=("iibmil",),
        departures=(
            _EXTRA,
            Departure(
                "momentum 0.94 of the soft labels, which start to move after two epochs",
                "the released code does not contain its training schedule",
                "`label_momentum`, `warmup_epochs`",
                "label schedule inferred",
            ),
        ),
    ),
    "pathgcn": Original(
        "Chen et al., MICCAI 2021 (Patch-GCN)",
        "mahmoodlab/Patch-GCN 823adda",
        "GENConv of torch_geometric",
        ("pathgcn",),
        (_EXTRA,),
    ),
    "deepgraphsurv": Original(
        "Li et al., MICCAI 2018",
        check="ChebConv of torch_geometric, 4e-16",
        departures=(
            Departure(
                "one Chebyshev filter (K = 5) for features and attention, then attention pooling",
                "the original code does not run (TensorFlow 1, a missing package), and the paper gives no sizes",
                note="architecture chosen here",
            ),
        ),
    ),
    "sm_clam": Original(
        _SM,
        check="CLAM on Sm(H) with a dense matrix, 1e-15; α = 0 is CLAM",
        departures=(_RELU, Departure("Sm acts on the embedding, before attention and pooling", _PLACE, note=_PLACED)),
    ),
    "sm_dsmil": Original(
        _SM,
        check="DSMIL on Sm(H) with a dense matrix, 1e-15; α = 0 is DSMIL",
        departures=(
            _EXTRA,
            Departure("Sm acts on the embedding, for scores, queries and values", _PLACE, note=_PLACED),
        ),
    ),
    "sm_dftd": Original(
        _SM,
        check="DTFD-MIL on Sm(H) with a dense matrix, 1e-15; α = 0 is DTFD-MIL",
        departures=(
            Departure("Sm acts on the embedding of each pseudo-bag, on the edges inside it", _PLACE, note=_PLACED),
        ),
    ),
    "penalty": Original(
        _SM,
        check="the Dirichlet energy as a dense double sum, 1e-15",
        departures=(
            Departure(
                "weight 1 of the energy in the loss",
                "the paper does not give it",
                "`penalty`",
                "penalty weight chosen here",
            ),
        ),
    ),
    "pooling": Original("the mean or maximum of the embedding", "", "closed form"),
}


def original_of(method: str) -> Original | None:
    """Return where a registered method comes from, by default what its base comes from; None = from this project."""
    entry = get_method(method)
    key = entry.original or method
    return original_of(entry.base) if key not in ORIGINALS and entry.base else ORIGINALS.get(key)
