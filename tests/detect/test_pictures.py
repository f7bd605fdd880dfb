# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a host may hold becomes uint8 RGB, or is refused with a reason."""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
pytest.importorskip("PIL")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402

from safegen_core.detect import pictures  # noqa: E402
from safegen_core.detect.pictures import split, views  # noqa: E402
from safegen_core.errors import PictureError  # noqa: E402


def ramp(height=6, width=5, channels=3):
    size = height * width * channels
    return (np.arange(size) * 255 // size).astype(np.uint8).reshape(height, width, channels)


def code_of(picture):
    with pytest.raises(PictureError) as caught:
        views(picture)
    return caught.value.code


def only(picture):
    (seen,) = views(picture)
    assert seen.dtype == torch.uint8
    assert seen.ndim == 3
    assert seen.shape[2] == 3
    return seen.numpy()


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(
    "as_host_holds_it",
    [
        lambda a: a,
        torch.from_numpy,
        Image.fromarray,
        lambda a: a.astype(np.float32) / 255,
        lambda a: a.astype(np.float64) / 255,
        lambda a: torch.from_numpy(a) / 255,
        lambda a: (torch.from_numpy(a) / 255)[None],
        lambda a: (torch.from_numpy(a) / 255).half(),
        lambda a: a.astype(np.uint16) * 257,
        lambda a: torch.from_numpy(a.astype(np.int32) * 257).to(torch.uint16),
        lambda a: np.dstack([a, np.full(a.shape[:2], 255, np.uint8)]),
        lambda a: Image.fromarray(a).convert("RGBA"),
        lambda a: saved(Image.fromarray(a), "PNG"),
        lambda a: saved(Image.fromarray(a), "TIFF"),
        lambda a: a.astype(">u2") * 257,
        lambda a: np.asfortranarray(a),
        lambda a: (torch.from_numpy(a) / 255).requires_grad_(),
    ],
)
def test_one_picture_in_many_guises_is_one_picture(as_host_holds_it):
    pixels = ramp()
    first = views(as_host_holds_it(pixels))[0]
    assert first.dtype == torch.uint8
    assert np.array_equal(first.numpy(), pixels)


def test_flipped_and_read_only_arrays():
    pixels = ramp()
    assert np.array_equal(only(pixels[::-1, ::-1]), pixels[::-1, ::-1])
    frozen = ramp()
    frozen.flags.writeable = False
    assert np.array_equal(only(frozen), pixels)


def test_nothing_given_is_changed():
    pixels = torch.rand(4, 4, 4)
    before = pixels.clone()
    views(pixels)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("channels", [None, 1])
def test_grey_shows_the_same_in_every_channel(channels):
    grey = ramp(channels=1)
    seen = only(grey if channels else grey[..., 0])
    assert np.array_equal(seen, np.repeat(grey, 3, axis=2))


def test_black_and_white():
    mask = np.array([[True, False]])
    for picture in (mask, torch.from_numpy(mask), Image.fromarray(mask)):
        assert only(picture)[..., 0].tolist() == [[255, 0]]


def test_sixteen_bit_grey_files():
    grey = (ramp(channels=1)[..., 0].astype(np.uint16)) * 257
    image = saved(Image.fromarray(grey), "PNG")
    assert any(np.array_equal(seen[..., 0].numpy(), grey // 257) for seen in views(image))


def test_integer_pixels_are_seen_at_both_scales():
    # 8-bit content in a 16-bit mode would be black at the wrong scale, and black is harmless
    image = Image.fromarray(np.array([[0, 200]], np.int32), mode="I")
    assert [seen[0, 1, 0].item() for seen in views(image)] == [1, 200]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "1"])
def test_every_mode_a_file_can_have(mode):
    image = Image.fromarray(ramp())
    image = image.convert("L" if mode == "LA" else "RGB").convert(mode)
    for seen in views(image):
        assert seen.shape == (6, 5, 3)


def test_exif_rotation_is_applied():
    image = Image.fromarray(ramp(height=4, width=9))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to view
    turned = saved(image, "PNG", exif=exif)
    assert np.array_equal(only(turned), np.rot90(ramp(height=4, width=9), -1))


def test_broken_exif_is_no_reason_to_refuse():
    image = saved(Image.fromarray(ramp()), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert only(image).shape == (6, 5, 3)


class TestMoreThanOneWay:
    """What one program shows and another does not is seen by us."""

    def shown(self, image):
        return [view.numpy().astype(int) for view in views(image)]

    def test_gamma_of_a_png(self):
        from PIL import PngImagePlugin

        chunk = PngImagePlugin.PngInfo()
        chunk.add(b"gAMA", (500).to_bytes(4, "big"))  # 0.005: dark as stored, bright as shown
        image = saved(Image.fromarray(np.full((4, 4, 3), 250, np.uint8)), "PNG", pnginfo=chunk)
        stored, viewed = self.shown(image)
        assert (stored == 250).all()
        assert viewed.max() == round(255 * (250 / 255) ** (1 / (2.2 * 0.005)))

    @pytest.mark.parametrize("gamma", [45455, 0, 2**31])
    def test_the_usual_gamma_or_a_broken_one_is_no_second_way(self, gamma):
        from PIL import PngImagePlugin

        chunk = PngImagePlugin.PngInfo()
        chunk.add(b"gAMA", gamma.to_bytes(4, "big"))
        seen = views(saved(Image.fromarray(ramp()), "PNG", pnginfo=chunk))
        assert np.array_equal(seen[0].numpy(), ramp())
        assert gamma == 2**31 or len(seen) == 1

    def test_colour_profiles(self):
        cms = pytest.importorskip("PIL.ImageCms")
        lab = cms.ImageCmsProfile(cms.createProfile("XYZ")).tobytes()
        srgb = cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes()
        image = Image.fromarray(ramp())
        assert len(views(saved(image, "PNG", icc_profile=srgb))) == 1
        swapped = srgb.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")
        red = Image.new("RGB", (4, 4), "red")
        stored, viewed = self.shown(saved(red, "PNG", icc_profile=swapped))
        assert stored[0, 0].argmax() == 0
        assert viewed[0, 0].argmax() == 2
        for profile in (lab, b"broken", srgb[:200]):
            assert np.array_equal(
                views(saved(image, "PNG", icc_profile=profile))[0].numpy(), ramp()
            )

    @pytest.mark.parametrize(
        "held",
        [
            lambda a: Image.fromarray(a.astype(np.int32)),
            lambda a: Image.fromarray(a.astype(np.uint16)),
            lambda a: a.astype(np.uint16),
            lambda a: torch.from_numpy(a.astype(np.int32)).to(torch.uint16),
        ],
    )
    def test_eight_bits_in_sixteen(self, held):
        pixels = ramp(channels=1)[..., 0]
        assert any(np.array_equal(view[..., 0], pixels) for view in self.shown(held(pixels)))

    def test_transparent_sixteen_bit_grey_is_refused(self):
        image = Image.fromarray(np.array([[30000, 30001]], np.uint16))
        image.info["transparency"] = 30000  # as a PNG's tRNS is read
        assert code_of(image) == "picture_dtype"

    def test_a_palette_with_alpha_of_its_own(self):
        image = Image.fromarray(np.eye(4, dtype=np.uint8)).convert("P")
        image.putpalette([90, 90, 90, 0, 90, 90, 90, 255], "RGBA")
        assert max(view.max() - view.min() for view in self.shown(image)) > 100

    def test_minus_one_to_one_in_numbers_that_could_be_zero_to_one(self):
        pixels = ramp() / 255 * 0.4 - 0.45  # black if clipped
        clipped, signed = self.shown(pixels)
        assert clipped.max() == 0
        assert signed.max() > signed.min()

    def test_a_little_overshoot_is_not_another_range(self):
        pixels = np.full((20, 20, 3), 0.5)
        pixels[0, :3] = -0.2
        assert len(views(pixels)) == 1


def test_large_transparent_pictures_are_worked_on_in_strips(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 11, 4), dtype=np.uint8)
    whole = views(pixels)
    monkeypatch.setattr(pictures, "_STRIP", 25)
    assert all(torch.equal(a, b) for a, b in zip(views(pixels), whole, strict=True))


class TestTransparency:
    def test_hidden_colours_are_seen(self):
        pixels = np.dstack([ramp(), np.zeros((6, 5), np.uint8)])
        seen = [view.numpy() for view in views(pixels)]
        assert any(np.array_equal(view, ramp()) for view in seen)

    def test_a_shape_drawn_in_alpha_alone_is_seen_whatever_its_colour(self):
        for colour in (0, 255):
            pixels = np.full((4, 4, 4), colour, np.uint8)
            pixels[..., 3] = np.eye(4) * 255
            contrast = [int(view.max()) - int(view.min()) for view in views(pixels)]
            assert max(contrast) == 255

    def test_opaque_pictures_are_looked_at_once(self):
        assert len(views(np.full((3, 3, 4), 255, np.uint8))) == 1

    def test_palette_transparency_in_a_file(self):
        image = Image.fromarray(ramp()).convert("P")
        assert len(views(saved(image, "PNG", transparency=0))) > 1

    def test_float_and_uint8_agree(self):
        pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
        for one, other in zip(views(pixels), views(pixels / np.float32(255)), strict=True):
            assert torch.equal(one, other)


class TestRefusals:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_pixels_that_show_nothing(self, value):
        pixels = torch.zeros(4, 4, 3)
        pixels[1, 2, 0] = value
        assert code_of(pixels) == "picture_nan"

    @pytest.mark.parametrize("scale", [255.0, 2.0, -1.0])
    def test_ranges_that_clipping_would_change(self, scale):
        assert code_of(torch.ones(4, 4, 3) * scale) == "picture_range"

    def test_overshoot_is_clipped_as_savers_do(self):
        seen = views(torch.tensor([[[-0.1, 0.5, 1.2]]]))[0]
        assert seen.tolist() == [[[0, 128, 255]]]

    @pytest.mark.parametrize(
        "shape",
        [(), (3,), (3, 8, 8), (8, 8, 2), (8, 8, 5), (2, 8, 8, 3), (0, 8, 3), (1, 1, 1, 8, 3)],
    )
    def test_shapes(self, shape):
        assert code_of(torch.zeros(shape)) == "picture_shape"
        assert code_of(np.zeros(shape, np.float32)) == "picture_shape"

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.complex64])
    def test_dtypes_without_a_range(self, dtype):
        assert code_of(torch.zeros(4, 4, 3, dtype=dtype)) == "picture_dtype"

    @pytest.mark.parametrize("dtype", [np.int64, np.complex64, object, "U3", "M8[s]"])
    def test_array_dtypes_without_a_range(self, dtype):
        assert code_of(np.zeros((4, 4, 3), dtype)) == "picture_dtype"

    @pytest.mark.parametrize("thing", [None, "cat.png", 7, {"samples": 1}, object()])
    def test_things_that_are_no_pictures(self, thing):
        assert code_of(thing) == "picture_shape"
        with pytest.raises(PictureError):
            split(thing)

    def test_absent_and_sparse_pixels(self):
        assert code_of(torch.zeros(4, 4, 3, device="meta")) == "picture_dtype"
        assert code_of(torch.zeros(4, 4, 3).to_sparse()) == "picture_dtype"

    def test_floating_point_files(self):
        assert code_of(Image.fromarray(np.zeros((4, 4), np.float32))) == "picture_dtype"

    def test_animations(self):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        animation = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert code_of(animation) == "picture_frames"

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
    def test_truncated_files(self, format):
        file = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file, format)
        half = io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2])
        try:
            image = Image.open(half)
        except OSError:
            return  # refused even earlier
        assert code_of(image) == "picture_unreadable"

    def test_too_many_pixels_before_decoding(self, monkeypatch):
        monkeypatch.setattr(pictures, "MAX_PIXELS", 20)
        image = saved(Image.fromarray(ramp()), "PNG")
        image.load = lambda: pytest.fail("decoded")  # type: ignore[method-assign]
        assert code_of(image) == "picture_too_large"
        assert code_of(ramp()) == "picture_too_large"


class TestSplit:
    def test_batches_and_lists(self):
        assert len(split(torch.zeros(3, 4, 4, 3))) == 3
        assert len(split(np.zeros((2, 4, 4, 3)))) == 2
        assert len(split(torch.zeros(4, 4, 3))) == 1
        assert len(split(Image.new("RGB", (4, 4)))) == 1
        assert split([]) == []

    def test_nothing_is_checked_yet(self):
        assert split([None, 3]) == [None, 3]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3, 4]),
    st.sampled_from(["uint8", "float32", "float16", "uint16", "bool"]),
    st.integers(0, 2**32 - 1),
)
def test_any_array_of_a_known_kind_has_views_of_its_size(height, width, channels, dtype, seed):
    pixels = np.random.default_rng(seed).random((height, width, channels))
    scale = {"uint8": 255, "uint16": 65535, "bool": 1}.get(dtype, 1)
    for seen in views((pixels * scale).astype(dtype)):
        assert seen.shape == (height, width, 3)
        assert seen.dtype == torch.uint8
