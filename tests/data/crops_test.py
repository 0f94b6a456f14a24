import struct
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
from photos import PHOTOS, encode, pil_bytes, scene

from seer_jax.data import crops
from seer_jax.runtime import errors

LIMIT = 1 << 24
RATIO = (3 / 4, 4 / 3)


def pil_scene():
  return pytest.importorskip("PIL.Image").fromarray(scene())


def assert_close(image: np.ndarray, expected: np.ndarray, within: float = 3):
  assert image.dtype == np.uint8
  assert image.shape == expected.shape
  assert np.abs(image.astype(int) - expected).mean() <= within


@pytest.mark.parametrize(
  "extension",
  [".jpg", ".png", ".webp", ".bmp", ".tiff", ".ppm", ".jp2", ".gif"],
)
def test_every_format_decodes_to_rgb(extension):
  within = 20 if extension == ".gif" else 3  # OpenCV dithers to 256 colours.
  image = crops.decode(encode(extension, scene()), LIMIT)
  assert_close(image, scene(), within)


def test_avif_decodes_to_rgb():
  data = pil_bytes(pil_scene(), "AVIF")
  assert_close(crops.decode(data, LIMIT), scene(), 6)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".tiff", ".pgm"])
def test_grey_becomes_rgb(extension):
  grey = scene()[..., 0]
  image = crops.decode(encode(extension, grey), LIMIT)
  assert_close(image, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("extension", [".png", ".tiff", ".ppm"])
def test_sixteen_bits_become_eight(extension):
  image = crops.decode(
    encode(extension, scene().astype(np.uint16) * 257), LIMIT
  )
  assert_close(image, scene(), 0)


@pytest.mark.parametrize("extension", [".png", ".webp"])
def test_alpha_is_dropped(extension):
  alpha = np.full((40, 60, 1), 50, np.uint8)
  rgba = np.concatenate([scene(), alpha], axis=-1)
  assert_close(crops.decode(encode(extension, rgba), LIMIT), scene(), 4)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette_becomes_rgb(kind):
  image = pil_scene().quantize(64)
  decoded = crops.decode(pil_bytes(image, kind), LIMIT)
  assert_close(decoded, np.asarray(image.convert("RGB")), 0)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind):
  data = pil_bytes(pil_scene().convert("CMYK"), kind)
  assert_close(crops.decode(data, LIMIT), scene())


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(kind):
  first = pil_scene()
  rest = [first.rotate(180), first.rotate(90)]
  data = pil_bytes(first, kind, save_all=True, append_images=rest)
  assert_close(crops.decode(data, LIMIT), scene(), 12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
  ImageOps = pytest.importorskip("PIL.ImageOps")
  image = pil_scene()
  exif = image.getexif()
  exif[0x0112] = orientation
  data = pil_bytes(image, "JPEG", exif=exif)
  image.getexif()[0x0112] = orientation
  upright = np.asarray(ImageOps.exif_transpose(image))
  assert_close(crops.decode(data, LIMIT), upright)


def reason(data: bytes, max_pixels: int = LIMIT) -> str:
  with pytest.raises(errors.BadImage) as caught:
    crops.decode(data, max_pixels)
  return str(caught.value)


def test_bad_images_say_why(capfd):
  assert reason(b"") == "empty file"
  assert reason(b"<html>404 not found</html>") == "not an image"
  assert reason(b"\xff\xd8") == "not an image"
  assert reason(encode(".jpg", scene())[:-9]) == "damaged or cut short"
  assert reason(encode(".png", scene())[:-9]) == "cut short"
  assert capfd.readouterr().err == ""


CUTS = {
  "baseline": (".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 0),
  "progressive": (".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
  "restarts": (".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
  "png": (".png",),
  "webp": (".webp", cv2.IMWRITE_WEBP_QUALITY, 80),
  "lossless": (".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
  "gif": (".gif",),
  "bmp": (".bmp",),
  "tiff": (".tiff",),
  "jp2": (".jp2",),
}


@pytest.mark.parametrize("kind", CUTS)
def test_image_cut_anywhere_is_bad(kind):
  extension, *options = CUTS[kind]
  data = encode(extension, scene(), *options)
  crops.decode(data, LIMIT)
  for end in {*range(1, len(data), 97), *range(len(data) - 40, len(data))}:
    reason(data[:end])


def test_jpeg_whose_second_half_never_arrived_is_bad():
  data = encode(".jpg", scene())
  reason(data[: len(data) // 2] + bytes(len(data) // 2))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_bytes_after_the_end_do_no_harm(extension):
  data = encode(extension, scene())
  # Phones append whole films, in which any marker may turn up.
  image = crops.decode(data + b"\xff\xda\x00IDAT" + bytes(99), LIMIT)
  np.testing.assert_array_equal(image, crops.decode(data, LIMIT))


@pytest.mark.parametrize(
  "extension",
  [
    *(".jpg", ".png", ".webp", ".bmp", ".gif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pam", ".pfm", ".hdr", ".sr"),
  ],
)
def test_size_is_read_from_the_header(extension):
  image = scene(40, 60)
  if extension in (".pfm", ".hdr"):
    image = image.astype(np.float32)
  if extension in (".pgm", ".pbm"):
    image = image[..., 0]
  data = encode(extension, image)
  assert crops.image_size(data) == (40, 60)
  assert crops.image_size(data[:5]) is None
  assert crops.decode(data, LIMIT).shape == (40, 60, 3)
  assert reason(data, 2399).startswith("too large: 40 x 60")


def test_size_of_the_rarer_headers():
  image = pil_scene()
  exif = image.getexif()
  exif[0x0112] = 6
  thumbnail = encode(".jpg", scene(8, 8))
  for data in (
    encode(".jpg", scene(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    pil_bytes(image, "JPEG", exif=exif),
    pil_bytes(image, "JPEG", comment=thumbnail),
    pil_bytes(image, "WEBP", lossless=True),
    pil_bytes(image, "WEBP", exif=exif),
    b"BM" + bytes(12) + b"\x0c\0\0\0" + b"\x3c\0\x28\0",
    b"BM" + bytes(12) + b"\x28\0\0\0" + b"\x3c\0\0\0\xd8\xff\xff\xff",
  ):
    assert crops.image_size(data) == (40, 60)


@pytest.mark.parametrize(
  "data", [b"", b"P9 60 40 255 ", b"\xff" * 999, b"RIFF", b"P6 60"]
)
def test_size_is_none_when_unknown(data):
  assert crops.image_size(data) is None


def test_size_of_tiffs_of_all_kinds():
  image = pil_scene()
  for options in (
    {"compression": "tiff_lzw"},
    {"compression": "jpeg"},
    {"save_all": True, "append_images": [image.resize((300, 200))]},
    {"big_tiff": True},
    {"tiffinfo": {322: 32, 323: 16}},
  ):
    data = pil_bytes(image, "TIFF", **options)
    assert crops.image_size(data) == (40, 60), options
    assert crops.decode(data, LIMIT).shape == (40, 60, 3), options
  motorola = struct.pack(">2sHIH", b"MM", 42, 8, 2)
  motorola += struct.pack(">HHIHxxHHIHxx", 256, 3, 1, 60, 257, 3, 1, 40)
  assert crops.image_size(motorola) == (40, 60)


def test_a_jpeg_2000_without_boxes_has_a_size():
  data = encode(".jp2", scene())
  begin = data.index(b"\xff\x4f\xff\x51")
  assert crops.image_size(data[begin:]) == (40, 60)
  # Other boxes may say anything.
  header = data.index(b"ihdr") + 4
  lying = data[:header] + b"\0\0\0\1\0\0\0\1" + data[header + 8 :]
  assert crops.image_size(lying) == (40, 60)


def tiff_of(fields):
  """The head of a TIFF whose directory has these long fields."""
  entries = [struct.pack("<HHII", tag, 4, 1, n) for tag, n in fields]
  return (
    b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries)
  )


SIDE = 32_000
BOMBS = {
  "a TIFF": tiff_of([(256, SIDE), (257, SIDE)]),
  "a TIFF of a large tile": tiff_of(
    [(256, 9), (257, 9), (322, SIDE), (323, SIDE)]
  ),
  "a TIFF of two widths": tiff_of([(256, SIDE), (256, 9), (257, SIDE)]),
  "a TIFF out of order": tiff_of(
    [(256, 9), (257, 9), (400, 0), (256, SIDE), (257, SIDE)]
  ),
  # 152 bytes, of which OpenCV alone makes 19 GiB in a minute.
  "a JPEG 2000 codestream": bytes.fromhex(
    "ff4fff51002f0000"
    + f"{SIDE:08x}" * 2
    + "00" * 8
    + f"{SIDE:08x}" * 2
    + "00" * 8
    + "0003"
    + "070101" * 3
    + "ff52000c00000001000404000100ff5c00134040484850484850484850484850484850"
    + "ff90000a0000000000000001ff93"
    + "00" * 50
    + "ffd9"
  ),
  "PNM": b"P6\n# of a scanner\n32000 32000\n255\n",
  "PAM": b"P7\nWIDTH 32000\nHEIGHT 32000\nDEPTH 3\nMAXVAL 255\nENDHDR\n",
  "PFM": b"PF\n32000 32000\n-1.0\n",
  "Radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 32000 +X 32000\n",
  "a Sun raster": struct.pack(">8I", 0x59A66A95, SIDE, SIDE, 24, 0, 1, 0, 0),
}


def test_bombs_are_refused_unread(tmp_path):
  """In a process of its own, whose largest memory is seen."""
  avif = encode(".avif", scene())
  at = avif.index(b"ispe") + 8
  large = struct.pack(">II", SIDE, SIDE)
  bombs = BOMBS | {"AVIF": avif[:at] + large + avif[at + 8 :]}
  for name, data in bombs.items():
    assert reason(data, 200_000_000).startswith("too large: 32000 x"), name
    (tmp_path / name).write_bytes(data)
  code = f"""
import pathlib, resource
from seer_jax.data import crops
from seer_jax.runtime import errors
def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, refused = peak(), 0
for path in pathlib.Path({str(tmp_path)!r}).iterdir():
  try:
    crops.decode(path.read_bytes(), 200_000_000)
  except errors.BadImage:
    refused += 1
print(refused, peak() - before)
"""
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  refused, kilobytes = map(int, run.stdout.split())
  assert refused == len(bombs)
  assert kilobytes < 20_000


def test_too_many_pixels_are_refused_before_decoding():
  data = encode(".bmp", scene())
  sides = b"".join(side.to_bytes(4, "little") for side in (60_000, 50_000))
  bomb = data[:18] + sides + data[26:]
  assert reason(bomb) == "too large: 50000 x 60000 is more than 16777216 pixels"
  assert reason(bomb, max_pixels=1 << 40).startswith("cannot be decoded: ")


@pytest.mark.parametrize("extension", [".jpg", ".tiff"])
def test_limit_on_pixels_is_inclusive(extension):
  data = encode(extension, scene(40, 60))
  assert crops.decode(data, max_pixels=2400).shape == (40, 60, 3)
  assert reason(data, max_pixels=2399).startswith("too large: 40 x 60")


@pytest.mark.parametrize(
  "height, width", [(300, 400), (400, 300), (7, 5), (1, 1)]
)
def test_box_stays_inside_the_image(height, width):
  rng = np.random.default_rng(0)
  for _ in range(500):
    top, left, h, w = crops.random_box(rng, height, width, (0.05, 1.0), RATIO)
    assert h > 0 and w > 0
    assert 0 <= top <= height - h and 0 <= left <= width - w


def test_box_keeps_to_scale_and_ratio_and_fills_them():
  rng = np.random.default_rng(0)
  boxes = [
    crops.random_box(rng, 1000, 1000, (0.1, 0.5), RATIO) for _ in range(2000)
  ]
  top, left, h, w = np.array(boxes).T
  area, log_ratio = h * w / 1e6, np.log(w / h)
  # Sides are whole pixels, so the limits hold to about one in 300.
  assert 0.098 < area.min() < 0.11 and 0.49 < area.max() < 0.502
  assert abs(area.mean() - 0.3) < 0.01
  assert np.abs(log_ratio).max() < np.log(4 / 3) + 0.01
  assert abs(log_ratio.mean()) < 0.02
  assert abs((top + h / 2).mean() - 500) < 10
  assert abs((left + w / 2).mean() - 500) < 10


@pytest.mark.parametrize(
  "height, width, box",
  [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10))],
)
def test_box_of_a_strip_is_its_central_part(height, width, box):
  rng = np.random.default_rng(0)
  assert crops.random_box(rng, height, width, (0.9, 1.0), RATIO) == box


def test_multi_crop_gives_one_array_a_group():
  groups = (
    crops.CropGroup(2, 32, (0.3, 1.0)),
    crops.CropGroup(4, 16, (0.05, 0.3)),
  )
  large, small = crops.multi_crop(
    scene(), np.random.default_rng(0), groups, RATIO
  )
  assert large.shape == (2, 32, 32, 3) and small.shape == (4, 16, 16, 3)
  assert large.dtype == small.dtype == np.uint8
  assert not (large[0] == large[1]).all()


def test_multi_crop_repeats_with_the_seed():
  groups = (
    crops.CropGroup(2, 32, (0.3, 1.0)),
    crops.CropGroup(1, 16, (0.1, 1)),
  )
  one, again, other = (
    crops.multi_crop(scene(), np.random.default_rng(seed), groups, RATIO)
    for seed in (1, 1, 2)
  )
  for a, b, c in zip(one, again, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert not (a == c).all()


def test_shrinking_does_not_alias():
  stripes = np.zeros((240, 240, 3), np.uint8)
  stripes[:, ::2] = 255
  crop = crops.center_crop(stripes, resize=40, size=32)
  assert np.abs(crop.astype(int) - 128).max() <= 1


def test_shrinking_agrees_with_pil():
  Image = pytest.importorskip("PIL.Image")
  image = scene(200, 200)
  expected = Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)
  crop = crops.center_crop(image, resize=64, size=64)
  assert_close(crop, np.asarray(expected), 1)


@pytest.mark.parametrize("height, width", [(40, 60), (60, 40)])
def test_center_crop_takes_the_middle(height, width):
  image = np.zeros((height, width, 3), np.uint8)
  image[
    height // 2 - 10 : height // 2 + 10, width // 2 - 10 : width // 2 + 10
  ] = 9
  assert (crops.center_crop(image, resize=40, size=20) == 9).all()
  whole = crops.center_crop(image, resize=40, size=40)
  assert (whole == 9).sum() == 20 * 20 * 3


def test_center_crop_of_a_hair_is_cheap():
  hair = np.full((1, 1_000_000, 3), 7, np.uint8)
  crop = crops.center_crop(hair, resize=256, size=224)
  assert crop.shape == (224, 224, 3) and (crop == 7).all()


def test_center_crop_cannot_be_larger_than_the_resized_image():
  with pytest.raises(ValueError, match="cannot cut 64 pixels out of 32"):
    crops.center_crop(scene(), resize=32, size=64)


@pytest.mark.skipif(not PHOTOS.exists(), reason=f"needs {PHOTOS}")
def test_no_good_photograph_is_called_bad():
  with tarfile.open(PHOTOS) as tar:
    files = [tar.extractfile(m) for m in tar if m.isfile()]
    assert len(files) == 334
    for file in files:
      data = file.read()
      assert crops.decode(data, LIMIT).shape[:2] == crops.image_size(data)
