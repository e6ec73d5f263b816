"""Pictures: decoded, refused, batched, varied and encoded."""

import base64
import io
import struct
import tracemalloc
import unicodedata
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18
from torchvision.transforms import v2
from transformers import (
    AutoModel,
    BlipConfig,
    CLIPConfig,
    ConvNextConfig,
    EfficientNetConfig,
    MobileNetV2Config,
    ResNetConfig,
    SiglipConfig,
    ViTConfig,
    ViTMAEConfig,
)

import lc_ray
from lc_ray.errors import DataError, ModelError
from lc_ray.modalities.image import Encoder, Modality, recoloured
from lc_ray.spec import InputSpec

SIDE = 32
IMAGE = Modality(InputSpec(column="image", modality="image", size=SIDE), "")


def picture(mode="RGB", size=(40, 24), color=(200, 30, 60), form="PNG", **options):
    file = io.BytesIO()
    image = Image.new("RGB", size, color)
    (image.quantize() if mode == "P" else image.convert(mode)).save(file, form, **options)
    return file.getvalue()


def pixels(data):
    return np.frombuffer(IMAGE.decode(data), np.uint8).reshape(SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *(("RGB", "PNG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("P", "GIF"), ("RGBA", "PNG"), ("RGB", "WEBP"), ("P", "PNG"), ("RGB", "BMP")),
        *(("RGB", "TIFF"), ("RGB", "ICO"), ("RGB", "PPM"), ("RGB", "TGA"), ("RGB", "MPO")),
    ],
)
def test_a_colour_survives_every_format(mode, form):
    assert np.abs(pixels(picture(mode, form=form)).astype(int) - [200, 30, 60]).max() < 12


def test_deep_grey_takes_no_more_memory_than_its_levels():
    file = io.BytesIO()
    Image.new("I;16", (1000, 1000), 500).save(file, "PNG")
    IMAGE.decode(file.getvalue())
    tracemalloc.start()
    IMAGE.decode(file.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 12 * 1_000_000  # bytes; of each pixel 2 as it is read, 4 as it is scaled, and what Pillow makes of it
    tracemalloc.stop()


def test_transparent_is_white_and_deep_grey_is_scaled():
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(file, "PNG")
    assert pixels(file.getvalue()).min() == 255
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)).save(file, "PNG")
    grey = pixels(file.getvalue())
    assert grey[0].max() < 10
    assert 100 < grey.mean() < 155
    assert grey[-1].min() > 245
    deep = [(30_000, np.uint16, 117), (1000, np.uint16, 4), (0.5, np.float32, 128), (200, np.float32, 200), (70_000, np.int32, 255)]
    for level, mode, seen in deep:
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8), level, mode)).save(file, "TIFF")
        assert (pixels(file.getvalue()) == seen).all(), level
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(file, "TIFF")
    with pytest.raises(DataError, match="levels that are not numbers"):
        pixels(file.getvalue())


def test_a_turned_camera_is_turned_back():
    image, file = Image.new("RGB", (40, 40), "black"), io.BytesIO()
    image.paste("white", (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(file, "PNG", exif=exif)
    found = pixels(file.getvalue())
    assert found[0].max() < 10
    assert found[-1].min() > 245


def claimed(width, height):
    """A PNG of a few bytes that says it is large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)


def icon(png):
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(png), 22) + png


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (picture(form="JPEG", size=(400, 400), quality=95)[:700], "damaged image"),
        (picture(form="AVIF").replace(b"av01", b"av0x"), "damaged image"),
        (picture(size=(1, 1)), "image of 1 × 1 pixels"),
        (claimed(10_000, 10_000), "more than 50 megapixels"),
        (claimed(100_000, 100_000), "more than 50 megapixels"),
        (icon(claimed(8_000, 8_000)), "more than 50 megapixels"),
        (b"\x00\x01hello", r"not an image of a known format$"),
        (b"<!DOCTYPE html>\n<p>404", "known format: it is HTML or XML"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "known format: it is HEIC; save it as JPEG"),
        (picture(form="EPS"), "not an image of a known format"),
        (picture(form="PDF"), "not an image of a known format"),
        (None, "null"),
        (float("nan"), "null"),
        (b"", "empty"),
        (7, "not bytes, a path or a URI but int"),
    ],
)
def test_bad_pictures_are_told_apart(data, reason):
    with pytest.raises(DataError, match=reason):
        IMAGE.decode(data)


def test_a_request_may_carry_base64_but_never_opens_a_file(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    plain = base64.b64encode(picture()).decode()
    assert IMAGE.decode({"b64": plain}) == IMAGE.decode({"b64": plain}, folder=tmp_path) == IMAGE.decode(picture())
    assert IMAGE.decode(plain) == IMAGE.decode("data:image/png;base64," + plain) == IMAGE.decode(picture())
    assert IMAGE.decode("a.png", folder=tmp_path) == IMAGE.decode({"bytes": None, "path": "a.png"}, folder=tmp_path) == IMAGE.decode(picture())
    with pytest.raises(DataError, match="not base64; of a file give the bytes"):
        IMAGE.decode(str(tmp_path / "a.png"))
    with pytest.raises(DataError, match="not base64"):
        IMAGE.decode({"bytes": None, "path": str(tmp_path / "a.png")})
    with pytest.raises(DataError, match="empty"):
        IMAGE.decode("", folder=tmp_path)
    for name in ("é ß.png", "日本.png", "~$a.png"):
        (tmp_path / name).write_bytes(picture())
        for cell in (name, name.encode(), f"file://{tmp_path}/{name}"):
            assert IMAGE.decode(cell, folder=tmp_path) == IMAGE.decode(picture())
    large = base64.b64encode(picture(form="BMP"))
    for cell in (large, b"data:image/bmp;base64," + large, base64.encodebytes(picture(form="BMP")).decode()):
        assert IMAGE.decode(cell, folder=tmp_path) == IMAGE.decode(picture(form="BMP"))
    named = Modality(InputSpec(column="image", modality="image", size=SIDE, path="{}.png"), "")
    for name in ("0a" * 64, "pics/" + "b" * 120):  # a digest by SHA-512; neither is base64
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for ending, modality in (("", IMAGE), (".png", named)):
            (tmp_path / f"{name}{ending}").write_bytes(picture())
            assert modality.decode(name, folder=tmp_path) == IMAGE.decode(picture())
    assert IMAGE.decode(f"pics\\{'b' * 120}.png", folder=tmp_path) == IMAGE.decode(picture())
    for name in ("b.png", "fi", "~nobody-of-this-name/b.png"):
        with pytest.raises(DataError, match=r"^no such file$"):
            IMAGE.decode(name, folder=tmp_path)


def test_a_name_is_found_as_another_system_spells_it(tmp_path):
    for name in ("sub/a b.png", unicodedata.normalize("NFD", "Ä.png"), "c.PNG", "d.jpg", "[1] e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    spaced = (r"sub\a b.png", "sub/a%20b.png", "./sub/a b.png", " sub/a b.png ")
    for name in (*spaced, unicodedata.normalize("NFC", "Ä.png"), "c.png", "d.JPG", "[1] e.png"):
        assert IMAGE.decode(name, folder=tmp_path) == IMAGE.decode(picture()), name


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_small_picture_in_base64_is_no_name(form, tmp_path):
    small = picture(size=(2, 2), form=form)
    cell = base64.b64encode(small).decode()
    assert IMAGE.decode(cell, folder=tmp_path) == IMAGE.decode(cell.encode(), folder=tmp_path) == IMAGE.decode(small)


def test_pictures_as_numbers(tmp_path):
    """As MNIST, FER2013 and datasets of arrays have them."""
    grey = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    written = " ".join(map(str, grey.flatten()))
    texts = [written, written.encode(), str(grey.tolist())]
    arrays = [colours, colours.transpose(2, 0, 1), colours / 255, colours.astype(float)]
    same = {
        (grey.tobytes(), (28, 28)): [grey, grey.tolist(), grey[:, :, None].tolist(), grey.flatten().tolist(), *texts],
        (colours.tobytes(), (30, 20)): [array.tolist() for array in arrays],
    }
    for (levels, size), cells in same.items():
        drawn, file = Image.frombytes("L" if size == (28, 28) else "RGB", size, levels), io.BytesIO()
        drawn.save(file, "PNG")
        for cell in cells:
            assert IMAGE.measured(cell, tmp_path) == IMAGE.measured(file.getvalue(), None) == IMAGE.measured(cell, None)
    bad = {"3 × 2 × 2 × 1 numbers are no picture": np.zeros((3, 2, 2, 1)).tolist(), "10 numbers are no picture": [1] * 10, "1 × 1 pixels": [[1]]}
    bad |= {"not one of a picture's levels": [[1, 2], [3]], "from 0 to 255": [[-1, 2], [3, 4]], "0 numbers": [[], []]}
    for reason, cell in bad.items():
        with pytest.raises(DataError, match=reason):
            IMAGE.decode(cell)


def test_a_picture_of_pil_is_what_its_file_is():
    """As datasets of Hugging Face decode them; turned, deep, with transparent parts, or cut off."""
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    for drawn in (Image.fromarray(grey), Image.new("RGBA", (30, 20), (9, 99, 199, 50)), Image.new("P", (30, 20), 7)):
        file = io.BytesIO()
        drawn.save(file, "PNG", exif=exif)
        opened = Image.open(file)
        assert IMAGE.measured(opened, None) == IMAGE.measured(file.getvalue(), None)
        assert IMAGE.measured(opened, None) == IMAGE.measured(opened, None), "and it is still open"
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file := io.BytesIO(), "PNG")
    with pytest.raises(DataError, match="damaged image"):
        IMAGE.decode(Image.open(io.BytesIO(file.getvalue()[:9000])))


def test_a_shown_picture_decodes_to_itself():
    random = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8).tobytes()
    assert IMAGE.decode(IMAGE.show({"pixels": random})) == random
    assert IMAGE.show({"pixels": None}) is None
    IMAGE.decode(IMAGE.example)


def test_batches_and_variations():
    rows = [IMAGE.decode(picture()), None]
    batch = IMAGE.collate(IMAGE.prepare(rows))["pixels"]
    assert (batch.shape, batch.dtype) == ((2, 3, SIDE, SIDE), torch.uint8)
    assert batch[0, :, 5, 5].tolist() == pytest.approx([200, 30, 60], abs=3)
    assert batch[1].max() == 0
    noise = {"pixels": torch.randint(255, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))}
    one, same, other = (IMAGE.augment(noise, torch.Generator().manual_seed(seed))["pixels"] for seed in (1, 1, 2))
    assert one.shape == noise["pixels"].shape
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_left_and_right_are_never_exchanged():
    """A digit, a sign or a word that is mirrored is another one, or none."""
    left = torch.zeros(64, 3, SIDE, SIDE, dtype=torch.uint8)
    left[..., : SIDE // 2] = 250
    varied = IMAGE.augment({"pixels": left}, torch.Generator().manual_seed(0))["pixels"]
    assert bool((varied[..., :2].float().mean((1, 2, 3)) > varied[..., -2:].float().mean((1, 2, 3))).all())


def test_a_resize_is_pillows():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (97, 130, 3), np.uint8))
    file = io.BytesIO()
    noise.save(file, "PNG")
    assert np.abs(pixels(file.getvalue()).astype(int) - np.asarray(noise.resize((SIDE, SIDE), Image.Resampling.BILINEAR), int)).max() <= 1


def test_recolouring_is_torchvisions(monkeypatch):
    """Each factor alone, far from where either clips."""
    batch = torch.randint(90, 150, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    functions = [v2.functional.adjust_brightness, v2.functional.adjust_contrast, v2.functional.adjust_saturation]
    for place, adjust in enumerate(functions):
        drawn = torch.full((4, 1, 1, 1), 0.5)
        drawn[place] = 0.9  # of 0 to 1: a factor of 1.16
        monkeypatch.setattr(torch, "rand", lambda *size, generator, drawn=drawn: drawn)
        found = recoloured(batch, 0.2, 0.0, torch.Generator())
        assert (found.int() - adjust(batch, 1.16).int()).abs().max() <= 1


def test_a_turn_of_hue_leaves_grey_and_a_third_exchanges_colours(monkeypatch):
    colours = torch.tensor([[50, 50, 50], [200, 60, 10]], dtype=torch.uint8).T.view(1, 3, 1, 2)
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.tensor([0.5, 0.5, 0.5, 1.0]).view(4, 1, 1, 1))
    found = recoloured(colours, 0.0, 1 / 3, torch.Generator())
    assert found[0, :, 0].T.tolist() == [[50, 50, 50], [10, 200, 60]]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "convnext_tiny", "regnet_y_400mf", "swin_t"])
def test_torchvision_models_by_name(name):
    torch.manual_seed(0)
    check(Encoder.pretrained(InputSpec(column="image", weights="random", size=64), name), 64)


VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": SIDE, "patch_size": 8}
TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
CONFIGS = {
    "vit": ViTConfig(**VIT),
    "clip": CLIPConfig(vision_config=VIT, text_config=TEXT),
    "siglip": SiglipConfig(vision_config=VIT, text_config=TEXT),
    "convnext": ConvNextConfig(num_stages=2, **STAGES),
    "resnet": ResNetConfig(embedding_size=8, **STAGES),
    "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.35),
    "efficientnet": EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_hugging_face_models_from_a_folder(kind, tmp_path):
    torch.manual_seed(0)
    AutoModel.from_config(CONFIGS[kind]).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}')
    found = Encoder.pretrained(InputSpec(column="image", size=SIDE), str(tmp_path))
    assert found.mean.flatten().tolist() == [0.5] * 3
    check(found, SIDE)


def test_a_masked_autoencoder_sees_all(tmp_path):
    torch.manual_seed(0)
    AutoModel.from_config(ViTMAEConfig(**VIT)).save_pretrained(tmp_path)
    encoder = Encoder.pretrained(InputSpec(column="image", size=SIDE), str(tmp_path)).eval()
    again = Encoder.rebuild(encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    batch = torch.randint(255, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.no_grad():
        assert encoder(batch)[0].shape[1] == 1 + (SIDE // 8) ** 2
        torch.testing.assert_close(again(batch)[0].mean(1), encoder(batch)[0].mean(1))


def test_a_part_of_a_model_that_can_not_stand_alone_is_told(tmp_path):
    AutoModel.from_config(BlipConfig(vision_config=VIT, text_config=TEXT)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no vision model can be loaded"):
        Encoder.pretrained(InputSpec(column="image", size=SIDE), str(tmp_path))


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "deeplabv3_resnet50", "r3d_18"])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_model_of_another_task_is_told_before_weights_are_asked_for(name, weights):
    with pytest.raises(ModelError, match="does not classify images"):
        Encoder.pretrained(InputSpec(column="image", base=name, weights=weights), name)


def test_a_size_that_does_not_fit_is_told(tmp_path):
    AutoModel.from_config(CONFIGS["vit"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"images of 64 × 64 pixels do not fit the model: .*32"):
        Encoder.pretrained(InputSpec(column="image", size=64), str(tmp_path))


def check(encoder, side):
    """Rebuilt, it gives the same; a row's result does not depend on its neighbours."""
    batch = torch.randint(255, (3, 3, side, side), dtype=torch.uint8)
    again = Encoder.rebuild(encoder.config)
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        hidden, mask = encoder.eval()(batch)
        assert hidden.shape[::2] == (3, encoder.width)
        assert mask.shape == hidden.shape[:2]
        torch.testing.assert_close(again.eval()(batch)[0], hidden)
        torch.testing.assert_close(encoder(batch[1:2])[0], hidden[1:2], rtol=1e-3, atol=1e-4)


def test_weights_that_cannot_be_had_are_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = SimpleNamespace(DEFAULT=SimpleNamespace(url="https://weights.invalid/r-0a.pth"))
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda name: published)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("it is tried again and again for minutes"))
    with pytest.raises(ModelError, match=r"no pretrained weights: r-0a.pth is neither in .*checkpoints nor can https://weights.invalid"):
        lc_ray.ImageModel("resnet18", pretrained=True)


def test_weights_of_a_safetensors_file(tmp_path):
    torch.manual_seed(0)
    save_file(resnet18().state_dict(), tmp_path / "resnet.safetensors")
    model = lc_ray.ImageModel("resnet18", pretrained=tmp_path / "resnet.safetensors")
    assert model.job["data"]["inputs"][0]["weights"] == str(tmp_path / "resnet.safetensors")
    assert lc_ray.ImageModel("resnet18", pretrained=False).job["data"]["inputs"][0]["weights"] == "random"
    with pytest.raises(ModelError, match="weights can't be loaded"):
        lc_ray.ImageModel("resnet50", pretrained=tmp_path / "resnet.safetensors")
