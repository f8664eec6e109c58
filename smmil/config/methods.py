"""The registry of methods: one `Method` each; the order of `METHODS` is the order of the tables.

The two groups are the paper's (Section 5): methods with and without a block that models global dependencies. Mean ranks
and the marks of the best and second-best values are taken within a group. Nothing heavy is imported here: the code of a
method is named as text and imported by `smmil.models.build_model`.
"""

import ast
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from preprocessing.common.cli import nearest
from smmil.config.variants import SEPARATOR, Value, Variant, base_method

WITHOUT_GLOBAL = "Without global interactions"
WITH_GLOBAL = "With global interactions"
GROUPS: tuple[str, str] = (WITHOUT_GLOBAL, WITH_GLOBAL)
PROPOSED = "◆"


@dataclass(frozen=True)
class Method:
    """One method: its code, its presentation, and the traits that other parts of the program ask for.

    Attributes:
        key: its name in the configuration and on disk.
        build: `module:name` of a subclass of `smmil.models.base.MILModel`, or of a function that returns one.
        name: its name in the paper.
        group: one of `GROUPS`.
        options: arguments that tell it from other methods of the same class.
        base: key of the method that it extends, "" = none. A method with Sm is compared with its base.
        proposed: whether the paper proposes it.
        carries_sm: whether it contains the layer Sm. It then takes the arguments `alpha`, `T` and `spectral_norm`, and
            all quirks of Sm act on it.
        released: whether it is part of the released code that `as_released` follows.
        scores_compare: whether instance scores of different bags have one scale. If not, a bag's size or logit sets the
            level of its scores, and metrics that pool the instances of all bags depend on it.
        original: key of `smmil.tables.originals.ORIGINALS`; "" = that of the base, or the method's own key.
        palette: methods of one palette share a colour; "" = the palette of the base, or a colour of its own.
    """

    key: str
    build: str
    name: str
    group: str
    options: Mapping[str, Value] = field(default_factory=dict)
    base: str = ""
    proposed: bool = False
    carries_sm: bool = False
    released: bool = False
    scores_compare: bool = True
    original: str = ""
    palette: str = ""

    @property
    def family(self) -> str:
        """Name shared by the methods of one colour."""
        return self.palette or (METHODS[self.base].family if self.base else self.key)


_without = partial(Method, group=WITHOUT_GLOBAL)
_with = partial(Method, group=WITH_GLOBAL)
_sm_without = partial(_without, proposed=True, carries_sm=True)
_smap = partial(_sm_without, build="smmil.models.smap:SmAP", base="abmil", released=True, original="sm", palette="sm")
_transformer = partial(_with, build="smmil.models.transformer:TransformerMIL", released=True, original="smt")
_smtap = partial(_transformer, base="t_ap", proposed=True, carries_sm=True, palette="sm")

METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        _smap("smap_early", name="SmAP", options={"placement": "early"}),
        _smap("smap_mid", name="SmAP-mid", options={"placement": "mid"}),
        _smap("smap_late", name="SmAP-late", options={"placement": "late"}),
        _without("abmil", "smmil.models.abmil:ABMIL", "ABMIL", released=True),
        _without("abmil_gated", "smmil.models.abmil:ABMIL", "ABMIL, gated", options={"gated": True}, base="abmil"),
        _without("clam", "smmil.models.clam:CLAM", "CLAM"),
        _without("clam_mb", "smmil.models.clam:CLAM", "CLAM-MB", options={"multi_branch": True}, base="clam"),
        _without("dsmil", "smmil.models.dsmil:DSMIL", "DSMIL"),
        _without("dftd", "smmil.models.dftd:DFTD", "DFTD-MIL"),
        _without(
            "dftd_maxmin", "smmil.models.dftd:DFTD", "DFTD-MIL, MaxMinS", options={"distill": "maxmin"}, base="dftd"
        ),
        _without("dftd_max", "smmil.models.dftd:DFTD", "DFTD-MIL, MaxS", options={"distill": "max"}, base="dftd"),
        _without("deepgraphsurv", "smmil.models.deepgraphsurv:DeepGraphSurv", "DeepGraphSurv"),
        _without("pathgcn", "smmil.models.pathgcn:pathgcn", "PathGCN"),
        _sm_without(
            "smclam", "smmil.models.clam:CLAM", "SmCLAM", options={"sm": True}, base="clam", original="sm_clam"
        ),
        _sm_without(
            "smdsmil", "smmil.models.dsmil:DSMIL", "SmDSMIL", options={"sm": True}, base="dsmil", original="sm_dsmil"
        ),
        _sm_without(
            "smdftd", "smmil.models.dftd:DFTD", "SmDFTD-MIL", options={"sm": True}, base="dftd", original="sm_dftd"
        ),
        _without(
            "abmil_penalty", "smmil.models.penalty:ABMILPenalty", "ABMIL+PENALTY", base="abmil", original="penalty"
        ),
        _without("mean_pool", "smmil.models.pooling:Pooling", "Mean pooling", original="pooling"),
        _without(
            "max_pool", "smmil.models.pooling:Pooling", "Max pooling", options={"pool": "max"}, original="pooling"
        ),
        _smtap("smtap", name="SmTAP", options={"sm_transformer": True, "sm_pool": True}),
        _transformer("t_ap", name="T+AP", options={"sm_transformer": False, "sm_pool": False}, palette="abmil"),
        _smtap("smt_ap", name="SmT+AP", options={"sm_transformer": True, "sm_pool": False}),
        _smtap("t_smap", name="T+SmAP", options={"sm_transformer": False, "sm_pool": True}),
        _with("transmil", "smmil.models.transmil:TransMIL", "TransMIL", scores_compare=False),
        _with("setmil", "smmil.models.setmil:SETMIL", "SETMIL", scores_compare=False),
        _with("gtp", "smmil.models.gtp:GTP", "GTP", scores_compare=False),
        _with("camil", "smmil.models.camil:CAMIL", "CAMIL"),
        _with("iibmil", "smmil.models.iibmil:IIBMIL", "IIB-MIL"),
        _with("t_penalty", "smmil.models.penalty:TransformerPenalty", "T+PENALTY", base="t_ap", original="penalty"),
    )
}


def get_method(key: str) -> Method:
    """Return the entry of a method; ValueError if it is not registered."""
    if key not in METHODS:
        raise ValueError(f"method: found {key!r}{nearest(key, METHODS)}, expected one of {', '.join(sorted(METHODS))}")
    return METHODS[key]


def method_arguments(key: str) -> dict[str, str]:
    """Return the arguments of a method by name, each with its type as written: `{"T": "int | str", ...}`.

    The key "**" stands for others, which are checked when the model is built. The source is parsed and not imported,
    which would load torch.
    """
    module, _, name = get_method(key).build.partition(":")
    arguments = _arguments(module, name)
    return {name: annotation for name, annotation in arguments.items() if name != "pos_weight"}


@functools.cache
def _source(module: str) -> ast.Module:
    path = Path(__file__).parents[2].joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _arguments(module: str, name: str) -> dict[str, str]:
    """Return the keyword arguments of a function or class, or the keys of a `TypedDict`."""
    for node in _source(module).body if module.split(".")[0] == "smmil" else []:
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return _arguments(node.module, name)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _keywords(node) | ({"**": "Any"} if node.args.kwarg else {})
        if isinstance(node, ast.ClassDef) and node.name == name:
            init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            annotated = {ast.unparse(n.target): ast.unparse(n.annotation) for n in fields}
            arguments = _keywords(init) if init is not None else annotated
            rest = init.args.kwarg if init is not None else None
            # `**options: Unpack[SmOptions]`: the arguments are the keys of that TypedDict.
            if rest is not None and isinstance(rest.annotation, ast.Subscript):
                return _arguments(module, ast.unparse(rest.annotation.slice)) | arguments
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)] if init is None or rest else []
            inherited = [_arguments(module, base) for base in bases]
            return {key: value for part in inherited for key, value in part.items()} | arguments
    return {}


def _keywords(function: ast.FunctionDef) -> dict[str, str]:
    return {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in function.args.kwonlyargs}


_TYPES = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),)}


def check_arguments(key: str, values: Mapping[str, object], where: str) -> None:
    """Raise if a method does not take an argument, or not a value of this type.

    Raises:
        ValueError: naming the argument after `where` in the configuration, and what is expected.
    """
    arguments = method_arguments(key)
    for name, value in values.items():
        if name not in arguments and "**" not in arguments and name != "quirks":
            raise ValueError(
                f"{where}: {key} has no argument {name!r}{nearest(name, arguments)}, expected some of "
                f"{', '.join(sorted(arguments))}"
            )
        kinds = [kind.strip() for kind in arguments.get(name, "").split("|")]
        types = [_TYPES[kind] for kind in kinds if kind in _TYPES]
        fits = any(type(value) in accepted for accepted in types)
        if len(types) == len(kinds) and not fits:
            raise ValueError(f"{where}.{name}: found {value!r}, expected {arguments[name]}")


def known_methods(names: Iterable[str]) -> None:
    """Raise ValueError with the unknown and the registered methods if a method is not registered."""
    unknown = sorted(set(names) - set(METHODS))
    if unknown:
        hint = "".join(nearest(name, METHODS) for name in unknown)
        raise ValueError(f"unknown methods {unknown}{hint}, expected some of {', '.join(sorted(METHODS))}")


def bases() -> dict[str, str]:
    """Return method with Sm -> the method that it is compared with."""
    return {method.key: method.base for method in METHODS.values() if method.carries_sm and method.base}


def display_name(key: str, *, mark: bool = False) -> str:
    """Return the name of a method as the paper writes it; an unknown key is returned unchanged.

    A variant is its method and the argument: `smap_early__alpha_0p1` is "SmAP, α = 0.1".
    """
    base = base_method(key)
    if base not in METHODS:
        return key
    name = METHODS[base].name + (f" {PROPOSED}" if mark and METHODS[base].proposed else "")
    return f"{name}, {Variant.parse(key).label}" if SEPARATOR in key else name


def marked_name(key: str) -> str:
    """Return the display name with ◆ after a method that the paper proposes."""
    return display_name(key, mark=True)


def group_of(key: str) -> str:
    """Return the group of a method or variant."""
    return METHODS[base_method(key)].group
