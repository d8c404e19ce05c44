import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from pictures import encoded, picture
from PIL import Image

from inference.images import ImageStore
from train.archives import images as module
from train.archives.images import check_zips, convert, convert_images, pack, read_competition, survey, thumbnail, work_file
from utils import InputError

ROOT = Path(__file__).resolve().parents[3]


def opened(jpeg):
    return Image.open(io.BytesIO(jpeg))


# Finding


def test_images_are_found_by_stem_at_any_depth_and_masks_are_not(tmp_path):
    names = [
        *("a/ISIC_1.jpg", "a/a/ISIC_2_downsampled.JPG", "b/ISIC_3.jpeg", "b/PAT_1_2_3.PNG"),
        *("b/ISIC_4_superpixels.png", "b/ISIC_4_Segmentation.png", "b/ISIC_4_attribute_pigment_network.png"),
        *(".hidden/ISIC_5.jpg", "__MACOSX/ISIC_6.jpg", "b/._ISIC_7.jpg", "out/ISIC_8.jpg", "b/notes.txt"),
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = survey(tmp_path, [tmp_path / "out"])
    assert {key: [path.relative_to(tmp_path).as_posix() for path in paths] for key, paths in found.images.items()} == {
        "ISIC_1": ["a/ISIC_1.jpg"],
        "ISIC_2": ["a/a/ISIC_2_downsampled.JPG"],
        "ISIC_3": ["b/ISIC_3.jpeg"],
        "PAT_1_2_3": ["b/PAT_1_2_3.PNG"],
    }


def test_a_linked_archive_is_searched_and_each_folder_once(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "ISIC_1.jpg").touch()
    (root / "out").mkdir(parents=True)
    for name, target in {"a": elsewhere, "b": elsewhere, "out-too": root / "out", "deep-back": root}.items():
        (root / name).symlink_to(target)
    (root / "ISIC_2.jpg").symlink_to(elsewhere / "deep" / "ISIC_1.jpg")
    (root / "out" / "ISIC_3.jpg").touch()
    found = survey(root, [root / "out"])
    assert found.images == {"ISIC_1": [root / "a" / "deep" / "ISIC_1.jpg"], "ISIC_2": [root / "ISIC_2.jpg"]}


@pytest.mark.parametrize("name", ["2016", "ISIC_9.jpg", "metadata.csv"])
def test_a_dangling_link_is_refused(tmp_path, name):
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(InputError, match=rf"{name} is a link to nowhere"):
        survey(tmp_path)


def zip_of(path, *names):
    with zipfile.ZipFile(path, "w") as packed:
        for name in names:
            packed.writestr(name, b"content")


def test_a_half_downloaded_zip_is_refused(tmp_path):
    zip_of(tmp_path / "whole.zip", "ISIC_1.jpg")
    (tmp_path / "ISIC_2019_Training_Input.zip").write_bytes((tmp_path / "whole.zip").read_bytes()[:40])
    with pytest.raises(InputError, match=r"ISIC_2019_Training_Input\.zip is no whole zip.*fetch it again"):
        check_zips(survey(tmp_path), ["2018"])


@pytest.mark.parametrize(
    ("name", "year"),
    [
        ("ISBI2016_ISIC_Part3_Training_Data.zip", "2016"),
        ("ISIC-2017_Test_v2_Data.zip", "2017"),
        ("ISIC2018_Task3_Training_Input.zip", "2018"),
        ("HAM10000_images_part_2.zip", "2018"),
        ("ISIC_2019_Training_Input.zip", "2019"),
        ("ISIC_2020_Training_JPEG.zip", "2020"),
        ("imgs_part_3.zip", "pad-ufes-20"),
    ],
)
def test_an_official_zip_is_to_be_unpacked(tmp_path, name, year):
    zip_of(tmp_path / name, "ATTRIBUTION.txt", "X/ISIC_1.jpg")
    with pytest.raises(InputError, match=r"has not been unpacked \(ISIC_1\.jpg"):
        check_zips(survey(tmp_path), [year])
    check_zips(survey(tmp_path), [other for other in module.ZIPS if other != year])  # of no year asked for
    (tmp_path / "ISIC_1.jpg").write_bytes(b"")
    check_zips(survey(tmp_path), [year])


def test_other_zips_do_not_matter(tmp_path):
    zip_of(tmp_path / "backup.zip", "ISIC_1.jpg")
    check_zips(survey(tmp_path), list(module.ZIPS))


# Converting


@pytest.mark.parametrize(
    ("width", "height", "size", "wanted"),
    [
        (80, 60, 30, (40, 30)),
        (60, 80, 30, (30, 40)),
        (80, 60, 60, (80, 60)),
        (80, 60, 500, (80, 60)),
        (900, 31, 30, (871, 30)),
    ],
)
def test_the_short_side_becomes_the_size_and_is_never_enlarged(width, height, size, wanted):
    converted = convert(encoded(picture(0, width, height), "PNG"), size)
    image = opened(converted.jpeg)
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", wanted)
    assert converted.pixels == width * height


def test_a_small_plain_jpeg_keeps_its_bytes():
    content = encoded(picture(0), quality=37)
    assert convert(content, 60).jpeg == content


@pytest.mark.parametrize(
    ("image", "form"), [(picture(0).convert("L"), "JPEG"), (picture(0).convert("CMYK"), "JPEG"), (picture(0), "PNG")]
)
def test_everything_else_becomes_rgb_jpeg(image, form):
    content = encoded(image, form)
    jpeg = convert(content, 60).jpeg
    assert jpeg != content
    assert opened(jpeg).mode == "RGB"
    assert np.abs(thumbnail(jpeg) - thumbnail(encoded(image.convert("RGB"), "PNG"))).mean() < 3


def test_transparency_is_left_away():
    image = picture(0).convert("RGBA")
    assert np.abs(thumbnail(convert(encoded(image, "PNG"), 60).jpeg) - thumbnail(encoded(picture(0), "PNG"))).mean() < 3


@pytest.mark.parametrize("size", [120, 60, 20])
def test_exif_orientation_is_applied(size):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    jpeg = convert(encoded(picture(0, 160, 120), exif=exif, quality=95), size).jpeg
    image = opened(jpeg)
    assert image.size == (size, round(size * 4 / 3))
    assert image.getexif().get(0x0112, 1) == 1
    upright = picture(0, 160, 120).transpose(Image.Transpose.ROTATE_270)
    shown = {turn: np.abs(thumbnail(jpeg) - thumbnail(encoded(upright.rotate(turn), "PNG"))).mean() for turn in (0, 180)}
    assert shown[0] < shown[180] / 3


@pytest.mark.parametrize("size", [(1600, 1200), (400, 300)])
def test_large_jpegs_decoded_coarsely_look_as_if_decoded_in_full(size):
    fine = np.random.default_rng(3).integers(80, 170, (60, 80, 1)).repeat(3, axis=2)  # as fine as the small image can show
    large = Image.fromarray(fine.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    jpeg = convert(encoded(large, quality=95), 60).jpeg
    full = opened(encoded(large.resize((80, 60), Image.Resampling.LANCZOS), quality=95))
    assert np.abs(np.asarray(opened(jpeg), int) - np.asarray(full, int)).mean() < 2


# The work folder


@pytest.fixture
def images(tmp_path):
    """Forty made images by id, in files."""
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / "in" / f"ISIC_{number:07d}.jpg").write_bytes(encoded(picture(number), quality=90))
    return survey(tmp_path / "in").images


def test_every_image_is_converted_and_hashed(images, tmp_path):
    hashed = convert_images(images, tmp_path / "work", 30)
    assert hashed.ids == sorted(images)
    for number, (image_id, paths) in enumerate(sorted(images.items())):
        content = paths[0].read_bytes()
        converted = convert(content, 30)
        assert hashed.sha256[number] == hashlib.sha256(content).hexdigest()
        assert hashed.phash[number].tobytes() == converted.phash
        assert hashed.pixels[number] == 4800
        assert work_file(tmp_path / "work", image_id).read_bytes() == converted.jpeg


def test_what_is_converted_is_not_converted_again_unless_its_file_changes(images, tmp_path, monkeypatch):
    first = convert_images(images, tmp_path / "work", 30)
    contents = []
    monkeypatch.setattr(module, "convert", lambda content, size: contents.append(content) or convert(content, size))
    again = convert_images(images, tmp_path / "work", 30)
    assert contents == []
    assert again.sha256 == first.sha256
    assert np.array_equal(again.phash, first.phash)
    changed = images["ISIC_0000003"][0]
    changed.write_bytes(encoded(picture(99), quality=80))
    assert convert_images(images, tmp_path / "work", 30).sha256 != first.sha256
    assert contents == [changed.read_bytes()]


def test_a_corrected_image_of_equal_size_and_time_is_converted_again(images, tmp_path):
    first = convert_images(images, tmp_path / "work", 30)
    path = images["ISIC_0000003"][0]
    content, state = path.read_bytes(), path.stat()
    path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert convert_images(images, tmp_path / "work", 30).sha256 != first.sha256


@pytest.mark.parametrize("break_it", [lambda content: content[:400], lambda content: b"", lambda content: b"<html>" * 99])
def test_a_broken_image_is_skipped_and_named(images, tmp_path, break_it):
    path = images["ISIC_0000005"][0]
    path.write_bytes(break_it(path.read_bytes()))
    hashed = convert_images(images, tmp_path / "work", 30)
    assert hashed.corrupt == [path]
    assert hashed.ids == [image_id for image_id in sorted(images) if image_id != "ISIC_0000005"]
    assert convert_images(images, tmp_path / "work", 30).corrupt == [path]


def test_an_image_that_vanishes_from_the_work_folder_is_an_input_error(images, tmp_path, monkeypatch):
    hashes = module.hash_files([path for paths in images.values() for path in paths])
    monkeypatch.setattr(module, "run_tasks", lambda *_, **__: [])  # converted by nobody, as if removed at once
    with pytest.raises(InputError, match="ISIC_"):
        convert_images(images, tmp_path / "work", 30, hashes)


def test_of_two_files_the_larger_whole_one_is_taken(images, tmp_path):
    small = images["ISIC_0000005"][0]
    large = tmp_path / "ISIC_0000005.jpg"
    large.write_bytes(encoded(picture(5, 160, 120), quality=95))
    both = {"ISIC_0000005": [small, large]}
    assert convert_images(both, tmp_path / "one", 30).pixels.tolist() == [160 * 120]
    large.write_bytes(large.read_bytes()[:-2000])
    hashed = convert_images(both, tmp_path / "two", 30)
    assert (hashed.pixels.tolist(), hashed.corrupt) == ([4800], [large])


def test_packed_as_the_competition_packs(images, tmp_path):
    convert_images(images, tmp_path / "work", 30)
    pack(tmp_path / "train-image.hdf5", sorted(images)[:7], tmp_path / "work")
    store = ImageStore(tmp_path / "train-image.hdf5")
    for image_id in sorted(images)[:7]:
        assert store.read(image_id) == work_file(tmp_path / "work", image_id).read_bytes()
    store.close()
    with h5py.File(tmp_path / "train-image.hdf5") as file:
        assert list(file) == sorted(images)[:7]
        assert all(file[name].shape == () and file[name].dtype.kind == "S" for name in file)


@pytest.mark.integration
def test_memory_stays_flat(tmp_path):
    """Twenty large images take no more than three: they are converted one at a time."""
    for number in range(23):
        folder = tmp_path / ("few" if number < 3 else "many")
        folder.mkdir(exist_ok=True)
        picture(number, 1200, 900).save(folder / f"ISIC_{number}.jpg", quality=70)
    code = (
        "import resource, sys; from pathlib import Path; from train.archives.images import convert_images, survey\n"
        "for name in ('few', 'many'):\n"
        "    convert_images(survey(Path(sys.argv[1]) / name).images, Path(sys.argv[1]) / 'work', 256)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())
    assert many - few < 10_000  # KB; 20 decoded images are 65 MB


# The competition


def test_the_competitions_images_are_hashed_as_the_archives_are(synthetic_data, tmp_path):
    found = read_competition(synthetic_data, tmp_path)
    assert len(found.patients) == 63
    assert len(found.hashed.ids) == len(found.stores) == 63
    for number in (0, 62):
        content = ImageStore(found.stores[number]).read(found.hashed.ids[number])
        assert np.array_equal(found.thumbnail(number), thumbnail(content))
        assert convert(content, 256).phash == found.hashed.phash[number].tobytes()
        assert hashlib.sha256(content).hexdigest() == found.hashed.sha256[number]


def test_a_competition_without_metadata_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no train-metadata\.csv or test-metadata\.csv"):
        read_competition(tmp_path, tmp_path)
