import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inference import images
from inference.images import CHUNK, ImageStore, SteadyImages, decode_crop, find_images, image_batches, pixels_claimed
from inference.schema import ID, read_metadata
from utils import InputError

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def ids(synthetic_data):
    return read_metadata(synthetic_data / "train-metadata.csv", labelled=True)[ID].tolist()


@pytest.fixture
def store(synthetic_data):
    store = ImageStore(synthetic_data / "train-image.hdf5")
    yield store
    store.close()


@pytest.fixture
def copy(synthetic_data, tmp_path):
    """A copy of the synthetic_data's HDF5 file that may be changed."""
    return shutil.copy(synthetic_data / "train-image.hdf5", tmp_path / "train-image.hdf5")


def crops_of(store, ids, image_size=32, batch_size=7):
    """isic_id -> crop, in the order in which the batches give them."""
    found = {}
    for positions, crops in image_batches(store, ids, image_size, batch_size):
        assert positions.dtype == "int64"
        assert crops.dtype == "uint8"
        assert crops.shape[1:] == (image_size, image_size, 3)
        assert len(positions) == len(crops) <= batch_size
        found |= {ids[position]: crop for position, crop in zip(positions.numpy(), crops.numpy(), strict=True)}
    return found


def same_crops(found, expected, without=()):
    """Whether ``found`` has the crops of ``expected``, in that order, except for some lesions."""
    expected = {name: crop for name, crop in expected.items() if name not in without}
    return list(found) == list(expected) and all(np.array_equal(found[name], expected[name]) for name in expected)


# Places in the file


def test_places_follow_the_bytes_in_the_file(tmp_path, store, ids):
    names = [ids[number] for number in (4, 1, 3, 0, 2)]
    with h5py.File(tmp_path / "image.hdf5", "w") as file:
        for name in names:
            file[name] = np.bytes_(store.read(name))
        file["link"] = h5py.ExternalLink("outside.hdf5", "/secret")
        offsets = [file[name].id.get_offset() for name in names]
    other = ImageStore(tmp_path / "image.hdf5")
    places = other.places(names)
    assert np.argsort(places).tolist() == np.argsort(offsets).tolist() == [0, 1, 2, 3, 4]
    assert other.places(["ISIC_9999999", "a/b", ""]).tolist() == [0, 0, 0]
    assert other.places([]).tolist() == []
    other.close()
    assert ImageStore(tmp_path).places(names).tolist() == [0] * 5


# Decoding


def equals_pillow(jpeg):
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    assert image.width == image.height
    return np.array_equal(decode_crop(jpeg, image.width), np.asarray(image))


def test_pixels_are_those_of_pillow_where_nothing_is_resized(store, ids):
    assert all(equals_pillow(store.read(isic_id)) for isic_id in ids)


def test_pixels_of_real_crops_are_those_of_pillow(real_data):
    with h5py.File(real_data / "train-image.hdf5") as file:
        jpegs = [file[name][()] for name in list(file)[:60]]
    assert all(equals_pillow(jpeg) for jpeg in jpegs)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_and_oblong_images_become_square_crops_of_three_channels(mode):
    buffer = io.BytesIO()
    Image.new(mode, (50, 20), 90 if mode == "L" else (90, 90, 90)).save(buffer, "JPEG")
    crop = decode_crop(buffer.getvalue(), 32).numpy()
    assert (crop.shape, crop.dtype) == ((32, 32, 3), np.dtype("uint8"))
    assert (crop == 90).all()


def test_shrinking_averages_and_does_not_pick_pixels():
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    buffer = io.BytesIO()
    Image.fromarray(board.astype("uint8")).save(buffer, "JPEG", quality=100)
    assert np.abs(decode_crop(buffer.getvalue(), 16).numpy()[2:-2, 2:-2] - 127.5).max() < 20


# Where images are kept


def test_the_hdf5_file_comes_before_the_folder(tmp_path):
    assert find_images(tmp_path, "train") is None
    (tmp_path / "train-image" / "image").mkdir(parents=True)
    assert find_images(tmp_path, "train") == tmp_path / "train-image" / "image"
    (tmp_path / "train-image.hdf5").touch()
    assert find_images(tmp_path, "train") == tmp_path / "train-image.hdf5"
    assert find_images(tmp_path, "test") is None


def test_images_may_be_linked_but_not_to_nowhere(tmp_path):
    (tmp_path / "elsewhere").touch()
    link = tmp_path / "train-image.hdf5"
    link.symlink_to("elsewhere")
    assert find_images(tmp_path, "train") == link
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(InputError, match=r"train-image\.hdf5 is a link to elsewhere"):
        find_images(tmp_path, "train")


def test_a_folder_of_jpegs_equals_the_hdf5_file(tmp_path, store, ids):
    for isic_id in ids[:9]:
        (tmp_path / f"{isic_id}.jpg").write_bytes(store.read(isic_id))
    folder = ImageStore(tmp_path)
    assert [isic_id in folder for isic_id in ids[7:11]] == [True, True, False, False]
    assert "A" * 300 not in folder
    assert folder.read(ids[10]) == b""
    assert same_crops(crops_of(folder, ids), crops_of(store, ids[:9]))
    folder.close()


def test_the_real_folder_equals_the_real_hdf5_file(real_data):
    folder, file = ImageStore(real_data / "train-image" / "image"), ImageStore(real_data / "train-image.hdf5")
    ids = [path.stem for path in sorted((real_data / "train-image" / "image").glob("*.jpg"))]
    assert len(ids) > 100
    assert all(folder.read(isic_id) == file.read(isic_id) != b"" for isic_id in ids)


def test_bytes_may_be_kept_as_a_string_or_as_an_array(tmp_path, store, ids):
    jpeg = store.read(ids[0])
    with h5py.File(tmp_path / "image.hdf5", "w") as file:
        file["string"] = np.bytes_(jpeg)
        file["array"] = np.frombuffer(jpeg, "uint8")
    other = ImageStore(tmp_path / "image.hdf5")
    assert other.read("string") == other.read("array") == jpeg


# Batches


def test_crops_come_in_the_order_asked_for(store, ids):
    asked = ids[::-1]
    crops = crops_of(store, asked)
    assert list(crops) == asked
    assert all(np.array_equal(crops[isic_id], decode_crop(store.read(isic_id), 32)) for isic_id in ids[:5])


def test_more_lesions_than_are_read_at_a_time(store, ids):
    asked = [ids[number % 3] for number in range(CHUNK + 5)]
    positions = np.concatenate([positions for positions, _ in image_batches(store, asked, 8, 100)])
    assert positions.tolist() == list(range(CHUNK + 5))


def test_lesions_without_a_readable_image_are_absent_and_the_others_unaffected(copy, store, ids):
    whole = crops_of(store, ids)
    with h5py.File(copy, "a") as file:
        jpeg = file[ids[1]][()]
        for isic_id, content in {
            ids[0]: jpeg[: len(jpeg) // 4],  # cut off
            ids[1]: b"no JPEG at all",
            ids[2]: b"\xff\xd8\xff\xe0" + bytes(50),
        }.items():
            del file[isic_id]
            file[isic_id] = np.bytes_(content)
        del file[ids[5]]
        del file[ids[6]]
        file[ids[6]] = h5py.Empty("S10")
        del file[ids[9]]
        file.create_group(ids[9])
        del file[ids[10]]
        file[ids[10]] = 3.5
    broken = ImageStore(copy)
    assert ids[5] not in broken
    assert [broken.read(ids[5]), broken.read(ids[6]), broken.read(ids[9])] == [b"", b"", b""]
    assert same_crops(crops_of(broken, ids), whole, without=[ids[number] for number in (0, 1, 2, 5, 6, 9, 10)])
    broken.close()


def test_a_file_that_is_damaged_in_one_place_still_gives_the_other_lesions(copy, store, ids):
    whole = crops_of(store, ids)
    with h5py.File(copy) as file:
        start = h5py.h5o.get_info(file[ids[3]].id).addr
    content = bytearray(copy.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    copy.write_bytes(content)
    damaged = ImageStore(copy)
    assert damaged.read(ids[3]) == b""
    assert same_crops(crops_of(damaged, ids), whole, without=[ids[3]])
    damaged.close()


def test_a_damaged_link_costs_its_own_lesion_only(copy, store, ids):
    whole, places = crops_of(store, ids), store.places(ids).tolist()
    with h5py.File(copy) as file:
        address = struct.pack("<Q", h5py.h5o.get_info(file[ids[3]].id).addr)
    copy.write_bytes(copy.read_bytes().replace(address, b"\xff" * 8))
    damaged = ImageStore(copy)
    found = damaged.places(ids).tolist()
    assert found[:3] + found[4:] == places[:3] + places[4:]
    assert same_crops(crops_of(damaged, ids), whole, without=[ids[3]])
    damaged.close()


def test_no_memory_is_taken_for_a_small_file_that_claims_a_large_image(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "image.hdf5", "w") as file:
        file.create_dataset("a", (images.MOST_BYTES + 1,), "u1", chunks=(1 << 20,), compression="gzip")
        file["b"] = np.frombuffer(b"\xff\xd8\xff" + bytes(50), "u1")
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff")
    os.truncate(tmp_path / "c.jpg", images.MOST_BYTES + 1)  # a hole: it takes no space
    taken = []
    monkeypatch.setattr(images.np, "empty", taken.append)
    monkeypatch.setattr(Path, "read_bytes", taken.append)
    assert ImageStore(tmp_path / "image.hdf5").read("a") == b""
    assert ImageStore(tmp_path).read("c") == b""
    assert taken == []


def test_large_images_are_read_few_at_a_time(store, ids, monkeypatch):
    whole, names = crops_of(store, ids), []
    monkeypatch.setattr(images, "CHUNK_BYTES", 1)
    assert same_crops(crops_of(store, ids), whole)

    class Watched:
        def read(self, isic_id):
            names.append(isic_id)
            return store.read(isic_id)

    next(iter(image_batches(Watched(), ids, 32, 1)))
    assert len(names) < 20 < len(ids)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_file_that_is_cut_or_zeroed_while_it_is_read_leaves_the_lost_lesions_out(copy, store, ids, kept, zeros):
    whole, open_before = crops_of(store, ids), ImageStore(copy)
    content = copy.read_bytes()
    left = content[: int(kept * len(content))]
    copy.write_bytes(left + bytes(len(content) - len(left)) if zeros else left)
    crops = crops_of(open_before, ids)
    assert len(crops) < len(whole)
    assert same_crops(crops, whole, without=[isic_id for isic_id in ids if isic_id not in crops])


def swapped(path, other):
    """Writes an HDF5 file with the same names, each with the image of the next, to ``other``."""
    with h5py.File(path) as source, h5py.File(other, "w") as target:
        names = list(source)
        for name, taken in zip(names, names[1:] + names[:1], strict=True):
            target.create_dataset(name, data=source[taken][()])
    return other


def test_a_steady_file_gives_no_image_once_it_was_written_to(copy, ids, tmp_path):
    other, store = swapped(copy, tmp_path / "other.hdf5"), SteadyImages(copy)
    assert store.read(ids[0]) != b""
    copy.write_bytes(other.read_bytes())
    for isic_id in (ids[0], ids[1], "ISIC_9999999"):
        with pytest.raises(InputError, match=r"train-image\.hdf5 was changed"):
            store.read(isic_id)
    store.close()


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_file_that_is_replaced_or_removed_stays_readable_as_it_was(copy, ids, tmp_path, how):
    whole, other = [ImageStore(copy).read(isic_id) for isic_id in ids], swapped(copy, tmp_path / "other.hdf5")
    store = SteadyImages(copy)
    copy.unlink() if how == "removed" else other.replace(copy)
    assert [store.read(isic_id) for isic_id in ids] == whole
    store.close()


def test_images_read_before_the_file_was_written_to_are_given(copy, ids, tmp_path, monkeypatch):
    monkeypatch.setattr("inference.images.CHUNK", 4)
    whole, other, store = crops_of(ImageStore(copy), ids), swapped(copy, tmp_path / "other.hdf5"), SteadyImages(copy)
    read, count, found = ImageStore.read, iter(range(len(ids))), {}

    def harmed(self, isic_id):
        if next(count) == 9:
            copy.write_bytes(other.read_bytes())
        return read(self, isic_id)

    monkeypatch.setattr(ImageStore, "read", harmed)
    with pytest.raises(tf.errors.OpError, match=r"train-image\.hdf5 was changed"):
        for positions, crops in image_batches(store, ids, 32, 4):
            found |= {ids[position]: crop for position, crop in zip(positions.numpy(), crops.numpy(), strict=True)}
    assert len(found) == 8
    assert all(np.array_equal(crop, whole[isic_id]) for isic_id, crop in found.items())


@pytest.mark.parametrize("strange", ["/", ".", "..", "", "a/b", "\0", "ISIC_é"])
def test_a_strange_id_is_simply_absent(store, ids, strange):
    assert list(crops_of(store, [ids[0], strange, ids[1]])) == [ids[0], ids[1]]


def test_a_reader_that_breaks_stops_the_run_and_is_no_missing_image(ids):
    class Broken:
        def read(self, isic_id):
            raise MemoryError(isic_id)

    with pytest.raises(tf.errors.OpError, match="MemoryError"):
        crops_of(Broken(), ids)


def test_no_lesion_no_crop(store):
    assert crops_of(store, []) == {}
    assert crops_of(store, ["ISIC_9999999"]) == {}


def test_the_bytes_are_those_that_h5py_gives(store, synthetic_data, ids):
    with h5py.File(synthetic_data / "train-image.hdf5") as file:
        assert all(store.read(isic_id) == file[isic_id][()] for isic_id in ids)


@pytest.mark.parametrize("layout", ["chunked", "compact", "opaque", "variable length"])
def test_every_hdf5_layout_is_read(tmp_path, store, ids, layout):
    jpeg = store.read(ids[0])
    with h5py.File(tmp_path / "image.hdf5", "w") as file:
        if layout == "chunked":
            file.create_dataset("lesion", data=np.frombuffer(jpeg, "uint8"), chunks=(100,), compression="gzip")
        elif layout == "opaque":
            file.create_dataset("lesion", data=np.void(jpeg))
        elif layout == "variable length":
            file.create_dataset("lesion", (), h5py.vlen_dtype("uint8"))[()] = np.frombuffer(jpeg, "uint8")
        else:
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.COMPACT)
            kind = h5py.h5t.py_create(np.dtype(f"S{len(jpeg)}"))
            made = h5py.h5d.create(file.id, b"lesion", kind, h5py.h5s.create(h5py.h5s.SCALAR), plist)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(jpeg))
    other = ImageStore(tmp_path / "image.hdf5")
    assert other.read("lesion") == jpeg
    other.close()


def test_a_file_that_another_process_has_locked_is_read(copy, ids):
    holder = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(copy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        locked = ImageStore(copy)
        assert locked.read(ids[0]).startswith(b"\xff\xd8\xff")
        locked.close()
        process.stdin.close()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "RGBA", "P"])
def test_other_kinds_of_pictures_are_decoded_too(mode):
    colours = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype="uint8")
    image, buffer = Image.fromarray(colours).convert(mode), io.BytesIO()
    image.save(buffer, "PNG" if mode in ("RGBA", "P") else "JPEG")
    crop = decode_crop(buffer.getvalue(), 32)
    assert crop.shape == (32, 32, 3)
    assert crop.numpy().std() > 10


@pytest.mark.parametrize("side", [1, 4000])
def test_tiny_and_huge_images_become_crops_of_the_same_size(side):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 100, 50)).save(buffer, "JPEG", quality=95)
    crop = decode_crop(buffer.getvalue(), 32).numpy()
    assert crop.shape == (32, 32, 3)
    assert np.abs(crop.astype(int) - (200, 100, 50)).max() <= 3


def claiming(image, width, height):
    """The same JPEG or PNG with other sides in its header."""
    if image.startswith(b"\x89PNG"):
        return image[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + image[24:]
    start = image.index(b"\xff\xc0") + 5
    return image[:start] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + image[start + 4 :]


@pytest.fixture
def one_image(tmp_path):
    """Reads these bytes as the image of a lesion, out of a folder."""

    def read(image):
        (tmp_path / "ISIC_0000001.jpg").write_bytes(image)
        return ImageStore(tmp_path).read("ISIC_0000001")

    return read


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_that_claims_to_be_enormous_is_refused_before_memory_is_taken(kind, one_image):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 100, 50)).save(buffer, kind)
    sound = buffer.getvalue()
    assert pixels_claimed(sound) == 1600
    assert one_image(sound) == sound
    enormous = claiming(sound, 60_000, 60_000)
    assert pixels_claimed(enormous) == 3_600_000_000
    assert one_image(enormous) == b""


@pytest.mark.parametrize("progressive", [False, True])
def test_the_sides_are_found_behind_whatever_else_a_jpeg_holds(progressive):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x010E] = "a lesion \xff\xc0"
    Image.new("RGB", (50, 30)).save(buffer, "JPEG", exif=exif, comment=b"\xff\xc0" * 9, progressive=progressive)
    image = buffer.getvalue()
    assert pixels_claimed(image) == 1500
    assert pixels_claimed(image[:2] + b"\xff\xff\xff" + image[3:]) == 1500  # fill bytes
    assert decode_crop(image[:20] + b"junk" + image[20:], 32).shape == (32, 32, 3)
    assert pixels_claimed(image[:20] + b"junk" + image[20:]) == 1500  # libjpeg passes over it, too


@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_keep_the_reader_from_its_answer(content, marked):
    assert pixels_claimed((b"\xff\xd8\xff" if marked else b"") + content) >= 0


@pytest.mark.parametrize("other", ["GIF", "BMP", "WEBP"])
def test_other_formats_are_no_image(other, one_image):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 100, 50)).save(buffer, other)
    assert one_image(buffer.getvalue()) == b""


# What lies outside


def test_links_out_of_the_file_are_not_followed(tmp_path, store, ids):
    with h5py.File(tmp_path / "outside.hdf5", "w") as file:
        file["secret"] = np.bytes_(store.read(ids[0]))
    with h5py.File(tmp_path / "image.hdf5", "w") as file:
        file["own"] = np.bytes_(store.read(ids[0]))
        file["external"] = h5py.ExternalLink("outside.hdf5", "/secret")
        file["soft"] = h5py.SoftLink("/own")
        file["dangling"] = h5py.SoftLink("/nowhere")
    linked = ImageStore(tmp_path / "image.hdf5")
    assert list(crops_of(linked, ["external", "soft", "dangling", "own"])) == ["own"]
    linked.close()


def test_bytes_kept_outside_the_file_are_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(b"0123456789")
    with h5py.File(tmp_path / "image.hdf5", "w") as file:
        file.create_dataset("raw", (10,), "uint8", external=[(str(tmp_path / "secret"), 0, 10)])
    linked = ImageStore(tmp_path / "image.hdf5")
    assert linked.read("raw") == b""
    linked.close()


def test_an_id_does_not_lead_out_of_the_folder(tmp_path, store, ids):
    (tmp_path / "image").mkdir()
    (tmp_path / "secret.jpg").write_bytes(store.read(ids[0]))
    assert ImageStore(tmp_path / "image").read("../secret") == b""
