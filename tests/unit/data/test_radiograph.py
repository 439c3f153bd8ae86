"""decode_image against Pillow, numpy and closed forms: modes, bit depths, DICOM, damage."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage, generate_uid

from voxray.core.task import BadRowError
from voxray.data.formats.radiograph import decode_image, median_short_side

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (32, 32), dtype=np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def write_dicom(path: Path, pixels: np.ndarray, **tags: object) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bits = pixels.dtype.itemsize * 8
    values: dict[str, object] = {
        "SOPClassUID": SecondaryCaptureImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "PixelData": pixels.tobytes(),
    }
    for name, value in (values | tags).items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("suffix", [".png", ".weird"])
def test_grey_at_its_own_size_is_untouched(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / "a.png", GREY).rename(tmp_path / f"a{suffix}")
    image = decode_image(path, 32)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, GREY[None])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_kept_in_any_mode(tmp_path: Path, mode: str) -> None:
    np.testing.assert_array_equal(decode_image(save(tmp_path / "a.png", GREY, mode), 32)[0], GREY)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    luma = rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(decode_image(save(tmp_path / "a.png", rgb), 32)[0] - luma).max() <= 1


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    wide = RNG.integers(0, 65536, (32, 32)).astype(np.uint16)
    wide[0, :2] = 0, 65535
    image = decode_image(save(tmp_path / "a.png", wide), 32)[0]
    np.testing.assert_array_equal(image, np.floor(wide / 257 + 0.5))
    assert (image[0, 0], image[0, 1]) == (0, 255)


def test_jpeg_is_close(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 32), (32, 1)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(decode_image(tmp_path / "a.jpg", 32)[0].astype(int) - ramp).max() <= 4


def test_centre_crop(tmp_path: Path) -> None:
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 200
    assert (decode_image(save(tmp_path / "wide.png", wide), 16) == 200).all()
    assert (decode_image(save(tmp_path / "tall.png", wide.T.copy()), 16) == 200).all()


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = decode_image(save(tmp_path / "a.png", checks), 16)[0]
    assert np.abs(small.astype(int) - 127.5).max() <= 2  # a pick of every 4th pixel would be all 0 or all 255


def test_dicom_is_stretched_over_its_range(tmp_path: Path) -> None:
    raw = (RNG.integers(0, 4096, (32, 32))).astype(np.uint16)
    image = decode_image(write_dicom(tmp_path / "a.dcm", raw, BitsStored=12, HighBit=11), 32)[0]
    expected = np.round((raw - raw.min()) * 255.0 / (raw.max() - raw.min()))
    np.testing.assert_array_equal(image, expected)
    assert np.array_equal(decode_image((tmp_path / "a.dcm").rename(tmp_path / "no_suffix"), 32)[0], expected)


def test_dicom_monochrome1_is_inverted(tmp_path: Path) -> None:
    light = decode_image(write_dicom(tmp_path / "2.dcm", GREY), 32)
    dark = decode_image(write_dicom(tmp_path / "1.dcm", GREY, PhotometricInterpretation="MONOCHROME1"), 32)
    np.testing.assert_array_equal(dark, 255 - light)


def test_dicom_rescale_and_window(tmp_path: Path) -> None:
    raw = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    tags = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 900, "WindowWidth": 401}
    image = decode_image(write_dicom(tmp_path / "a.dcm", raw, **tags), 32)[0]
    # DICOM PS3.3 C.11.2.1.2.1, linear: (x - (c - 0.5)) / (w - 1) + 0.5, clipped
    expected = np.clip((raw * 2.0 - 100 - 899.5) / 400 + 0.5, 0, 1) * 255
    assert np.abs(image - expected).max() <= 1
    assert image.min() == 0
    assert image.max() == 255


def test_dicom_keeps_the_windows_black_and_white(tmp_path: Path) -> None:
    """Two images under one window stay comparable, though neither reaches its ends."""
    raw = np.full((32, 32), 600, np.uint16)
    raw[:, 16:] = 700
    tags = {"WindowCenter": 600.5, "WindowWidth": 401, "BitsStored": 12, "HighBit": 11}
    image = decode_image(write_dicom(tmp_path / "a.dcm", raw, **tags), 32)[0]
    assert np.unique(image).tolist() == [
        128,
        191,
    ]  # (600 - 600) / 400 + .5 and (700 - 600) / 400 + .5, of 255
    inverted = tags | {"PhotometricInterpretation": "MONOCHROME1"}
    image = decode_image(write_dicom(tmp_path / "b.dcm", raw, **inverted), 32)[0]
    assert np.unique(image).tolist() == [64, 127]


def test_dicom_takes_the_first_of_several_windows(tmp_path: Path) -> None:
    raw = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    one = decode_image(write_dicom(tmp_path / "1.dcm", raw, WindowCenter=300, WindowWidth=200), 32)
    tags = {"WindowCenter": [300, 800], "WindowWidth": [200, 50]}
    np.testing.assert_array_equal(decode_image(write_dicom(tmp_path / "2.dcm", raw, **tags), 32), one)


def test_dicom_signed_pixels(tmp_path: Path) -> None:
    raw = RNG.integers(-2048, 2048, (32, 32)).astype(np.int16)
    tags = {"PixelRepresentation": 1, "RescaleSlope": 0.5, "RescaleIntercept": 10}
    expected = np.round((raw - raw.min()) * (255.0 / np.ptp(raw.astype(float))))
    np.testing.assert_array_equal(decode_image(write_dicom(tmp_path / "a.dcm", raw, **tags), 32)[0], expected)


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_is_black_and_sets_no_range(tmp_path: Path, interpretation: str) -> None:
    raw = RNG.integers(1000, 1200, (32, 32)).astype(np.uint16)
    raw[:, :5] = 65535
    tags = {"PixelPaddingValue": 65535, "PhotometricInterpretation": interpretation}
    image = decode_image(write_dicom(tmp_path / "a.dcm", raw, **tags), 32)[0]
    assert not image[:, :5].any()
    inside = raw[:, 5:].astype(float)
    expected = np.round((inside - inside.min()) * (255.0 / np.ptp(inside)))
    np.testing.assert_array_equal(
        image[:, 5:], expected if interpretation == "MONOCHROME2" else 255 - expected
    )


def test_dicom_voi_table(tmp_path: Path) -> None:
    """A square-root curve as a table (PS3.3 C.11.2.1.1), looked up by hand."""
    raw = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    curve = np.round(np.sqrt(np.arange(1024) / 1023) * 4095).astype(np.uint16)
    table = Dataset()
    table.LUTDescriptor = [1024, 0, 12]
    table.LUTData = curve.tobytes()
    image = decode_image(write_dicom(tmp_path / "a.dcm", raw, VOILUTSequence=[table]), 32)[0]
    np.testing.assert_array_equal(image.ravel(), np.round(curve * (255.0 / 4095)))


def test_dicom_compressed_by_pydicom(tmp_path: Path) -> None:
    raw = RNG.integers(0, 4096, (32, 32)).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", raw, BitsStored=12, HighBit=11)
    plain = decode_image(path, 32)
    dataset = dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    assert dcmread(path).file_meta.TransferSyntaxUID == RLELossless
    np.testing.assert_array_equal(decode_image(path, 32), plain)


def test_dicom_in_colour(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    luma = rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(decode_image(write_dicom(tmp_path / "a.dcm", rgb, **tags), 32)[0] - luma).max() <= 1
    with pytest.raises(BadRowError, match="colours of uint16"):
        decode_image(write_dicom(tmp_path / "b.dcm", rgb.astype(np.uint16), **tags), 32)


def test_a_pydicom_sample(tmp_path: Path) -> None:
    """A scanner's own file that comes with pydicom: signed, rescaled, windowed, padded."""
    path = Path(get_testdata_file("CT_small.dcm"))
    dataset = dcmread(path)
    values = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    image = decode_image(path, 128)[0]
    assert dataset.pixel_array.shape == image.shape == (128, 128)
    shown = dataset.pixel_array != dataset.get("PixelPaddingValue", 1 << 20)
    order = np.argsort(values[shown], kind="stable")
    assert (np.diff(image[shown][order].astype(int)) >= 0).all()
    assert not image[~shown].any()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".dcm"])
def test_every_truncation_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".dcm":
        write_dicom(path, GREY)
    else:
        save(path, GREY)
    whole = path.read_bytes()
    for keep in [0, 1, 7, 60, len(whole) // 3, len(whole) // 2, len(whole) * 9 // 10, len(whole) - 30]:
        path.write_bytes(whole[:keep])
        with pytest.raises(BadRowError, match=f"a{suffix}"):
            decode_image(path, 32)


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GREY)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadRowError, match=r"a\.png"):
        decode_image(path, 32)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"GIF89a" + bytes(50)])
def test_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadRowError, match=r"a\.png"):
        decode_image(tmp_path / "a.png", 32)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadRowError, match=r"gone\.png"):
        decode_image(tmp_path / "gone.png", 32)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(
        ">IIBBBBB", 12000, 12000, 8, 0, 0, 0, 0
    )  # 144 million pixels, between Pillow's two limits
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10)))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(BadRowError, match=r"bomb\.png.*decompression bomb"):
        decode_image(tmp_path / "bomb.png", 32)


def test_dicom_of_several_frames_or_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRowError, match="2 frames"):
        decode_image(write_dicom(tmp_path / "a.dcm", GREY, NumberOfFrames=2), 32)
    with pytest.raises(BadRowError, match=r"b\.dcm"):
        decode_image(write_dicom(tmp_path / "b.dcm", GREY, Rows=60000, Columns=60000), 32)


def test_median_short_side_reads_headers_only(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{side}.png", np.zeros((side, 2 * side), np.uint8)) for side in (10, 20, 90)]
    paths.append(write_dicom(tmp_path / "30.dcm", np.zeros((30, 40), np.uint8)))
    (tmp_path / "broken.png").write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:60])  # pixels gone, header whole
    assert median_short_side([*paths, tmp_path / "broken.png"]) == 20
    assert median_short_side([tmp_path / "broken.png"]) is None
