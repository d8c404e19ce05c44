"""The fusion network: a backbone, ResNet50 by default, on the crop, beside the tabular logit.

    final logit = tabular logit + correction(crop, tabular logit)

The correction's last layer starts at zero: before the first training step the network is the tabular model. What is saved
are weights, and the network is built by this code: saved Keras models break between versions.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.backbones import BACKBONES, RESNET50, backbone_features
from utils import InputError

if TYPE_CHECKING:
    import keras

# TensorFlow and Keras are imported where they are used: they take seconds, and the kernel must reach its tabular
# submission even where they cannot be imported. These settings are read at that first import.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow's default is oneDNN only on processors with AVX-512; it is several times faster on others, too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Each fold's network is traced anew, by design; TensorFlow would warn of it.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

SMALLEST_IMAGE = 32
#: The symmetries of a square.
MOST_VIEWS = 8
CPU = "/device:CPU:0"
#: Values of a network's trainable and other variables, each in the network's order.
State = tuple[list, list]


@dataclass(frozen=True)
class NetworkConfig:
    """What a network is built from; kept in the manifest as "settings".

    Args:
        image_size: width and height of the crops, pixels; at least 32.
        inputs: ("crop", "tabular") for the fusion; ("crop",) for the image alone; ("tabular",) for the tabular logit alone.
        tabular_mean: mean of the tabular logits in training; the head gets standardised ones.
        tabular_std: their standard deviation.
        backbone: of ``inference.backbones.BACKBONES``.
        feature_dropout: dropout rate of the backbone's features.
        head_units: width of the head's hidden layer; 0 for none.
        head_dropout: dropout rate of the hidden layer.
        base_logit: initial logit of a network without the input "tabular": that of the prevalence. Otherwise ignored.
        views: mirrored and turned views of each crop whose logits are averaged, 1 to 8.
    """

    image_size: int
    inputs: tuple[str, ...] = ("crop", "tabular")
    tabular_mean: float = 0.0
    tabular_std: float = 1.0
    backbone: str = RESNET50
    feature_dropout: float = 0.0
    head_units: int = 64
    head_dropout: float = 0.2
    base_logit: float = 0.0
    views: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self) | {"inputs": list(self.inputs)}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> NetworkConfig:
        """From what ``to_dict`` gave; raises InputError if it is anything else."""
        try:
            config = cls(**settings | {"inputs": tuple(settings.get("inputs", cls.inputs))})
            if config.backbone not in BACKBONES or config.views not in range(1, MOST_VIEWS + 1):
                raise TypeError(f"backbone {config.backbone!r}, views {config.views!r}")
        except TypeError as error:
            raise InputError(f"the network settings {settings} are not of this version ({error}); train again.") from error
        return config


def build_network(config: NetworkConfig, backbone_weights: str | None = None) -> keras.Model:
    """Builds the network, uncompiled.

    Args:
        config: what to build.
        backbone_weights: as ``inference.backbones.backbone_features`` takes them.

    Returns:
        A model from {"crop": uint8 (batch, image_size, image_size, 3), "tabular": float32 (batch, 1)} to logits,
        float32 of shape (batch, 1).

    Raises:
        InputError: the image size is below 32.
    """
    import keras
    from keras import layers

    if config.image_size < SMALLEST_IMAGE:
        raise InputError(
            f"image size {config.image_size} is too small for {config.backbone}; use at least {SMALLEST_IMAGE}."
        )
    inputs, features = {}, []
    if "crop" in config.inputs:
        shape = (config.image_size, config.image_size, 3)
        inputs["crop"] = keras.Input(shape, name="crop", dtype="uint8")
        pixels = layers.Rescaling(1.0, name="float_pixels", dtype="float32")(inputs["crop"])
        pooled = backbone_features(config.backbone, pixels, backbone_weights)
        if config.feature_dropout:
            pooled = layers.Dropout(config.feature_dropout, name="feature_dropout", dtype="float32")(pooled)
        features.append(pooled)
    if "tabular" in config.inputs:
        inputs["tabular"] = keras.Input((1,), name="tabular", dtype="float32")
        scale, offset = 1.0 / config.tabular_std, -config.tabular_mean / config.tabular_std
        standardised = layers.Rescaling(scale, offset=offset, name="standardised_tabular_logit", dtype="float32")
        features.append(standardised(inputs["tabular"]))
    # The head computes in float32 whatever the backbone does: its small corrections would drown in half precision.
    join = layers.Concatenate(name="crop_and_tabular_logit", dtype="float32")
    joined = join(features) if len(features) > 1 else features[0]
    hidden = joined
    if config.head_units:
        hidden = layers.Dense(config.head_units, activation="relu", name="head", dtype="float32")(hidden)
        hidden = layers.Dropout(config.head_dropout, name="head_dropout", dtype="float32")(hidden)
    bias = keras.initializers.Constant(0.0 if "tabular" in config.inputs else config.base_logit)
    last = layers.Dense(1, kernel_initializer="zeros", bias_initializer=bias, name="correction", dtype="float32")
    correction = last(hidden)
    if "tabular" not in config.inputs:
        return keras.Model(inputs, correction, name="image_only")
    logits = layers.Add(dtype="float32", name="final_logits")([inputs["tabular"], correction])
    return keras.Model(inputs, logits, name="fusion" if "crop" in config.inputs else "tabular_only")


def load_network(config: NetworkConfig, weights: Path) -> keras.Model:
    """Rebuilds a trained network and loads its weights.

    Raises:
        InputError: the weights do not fit the network.
    """
    network = build_network(config)
    _load_weights(network, weights)
    return network


def load_state(network: keras.Model, weights: Path) -> State:
    """Loads a file's weights into a network and returns copies of them, so that those of another file can follow.

    Raises:
        InputError: they do not fit the network.
    """
    _load_weights(network, weights)
    return _state_of(network)


def _load_weights(network: keras.Model, weights: Path) -> None:
    try:
        try:
            network.load_weights(weights)
        except OSError:  # a lock of another process, or a file system without locks: a copy has neither problem
            with tempfile.TemporaryDirectory() as folder:
                network.load_weights(shutil.copy(weights, folder))
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{weights.name} does not fit the network of the manifest ({reason}); train again.") from error


def _state_of(network: keras.Model) -> State:
    import tensorflow as tf

    trainable, others = ([tf.identity(variable.value) for variable in group] for group in _variables(network))
    return trainable, others


def _variables(network: keras.Model) -> tuple[list, list]:
    """A network's variables in the two groups that Keras's ``stateless_call`` asks for."""
    return network.trainable_variables, network.non_trainable_variables


def view(crops, number: int):
    """One of a square's eight symmetries, by the bits of ``number``; 0 leaves crops, (batch, size, size, 3), as they are."""
    import tensorflow as tf

    crops = tf.reverse(crops, [2]) if number & 1 else crops
    crops = tf.reverse(crops, [1]) if number & 2 else crops
    return tf.transpose(crops, (0, 2, 1, 3)) if number & 4 else crops


def devices() -> list[str]:
    """The accelerators of this machine by their logical names, or its CPU."""
    import tensorflow as tf

    return [device.name for device in tf.config.list_logical_devices("GPU")] or [CPU]


class Ensemble:
    """Fold networks as one function of a batch: the mean of their logits, on all accelerators.

    One network is built and traced, which takes seconds, and run with the weights of each fold in turn.

    Args:
        network: as ``build_network`` makes it.
        states: the weights of each fold, as ``load_state`` gives them; the network's own, if not given.
        places: logical devices that share a batch.
        note: called, as ``Run.fall_back`` is, when memory does not suffice: reason, count and a sentence.
        views: of each crop whose logits are averaged, the first ones of ``view``.
    """

    def __init__(
        self,
        network: keras.Model,
        states: Sequence[State] | None = None,
        places: Sequence[str] = (CPU,),
        note: Callable[[str, int, str], None] = lambda reason, count, text: None,
        views: int = 1,
    ) -> None:
        import tensorflow as tf

        self._network, self.note, self.views = network, note, views
        self._at_once: int | None = None  # crops that fit into memory, once they did not
        self._names = [tensor.name for tensor in network.inputs]
        self._one = self._traced()
        self._states = [_state_of(network)] if states is None else list(states)
        try:
            self.functions = {place: self._function_on(place) for place in places}
        except tf.errors.OpError as error:
            self._leave_accelerators(error)

    def _traced(self) -> Callable:
        """``_logits_of_one``, traced once: calling a tf.function would compare hundreds of weights with its signature."""
        import tensorflow as tf

        size = {tensor.name: tensor.shape[1:] for tensor in self._network.inputs}.get("crop", (None, None, 3))
        # Of any number of crops, so that the last, smaller batch is not traced anew.
        batch = tf.TensorSpec((None, *size), tf.uint8), tf.TensorSpec((None, 1), tf.float32)
        state = tuple([tf.TensorSpec(value.shape, value.dtype) for value in group] for group in _variables(self._network))
        return tf.function(self._logits_of_one).get_concrete_function(*batch, state)

    def halve_views(self) -> bool:
        """From here on half as many views of each crop; False where there is one only."""
        if self.views == 1:
            return False
        self.views //= 2
        self._one = self._traced()
        return True

    def _logits_of_one(self, crops, tabular, state: State):
        import tensorflow as tf

        # All views as one batch: the network is traced once, whatever their number.
        crops = tf.concat([view(crops, number) for number in range(self.views)], axis=0)
        inputs = {"crop": crops, "tabular": tf.tile(tabular, (self.views, 1))}
        logits = self._network.stateless_call(*state, {name: inputs[name] for name in self._names}, training=False)[0]
        return tf.reduce_mean(tf.reshape(logits, (self.views, -1, 1)), axis=0)

    def _function_on(self, place: str) -> Callable:
        """The mean of all folds' logits of (crops, tabular) on a device; what it returns may not be computed yet."""
        import tensorflow as tf

        with tf.device(place):
            states = [tf.nest.map_structure(tf.identity, state) for state in self._states]

        def mean(crops, tabular):
            with tf.device(place):
                return tf.add_n([self._one(crops, tabular, state) for state in states]) / len(states)

        return mean

    def logits(self, crops, tabular) -> np.ndarray:
        """Mean logits, float64 of shape (rows,), of crops uint8 (rows, size, size, 3) and tabular logits float32 (rows, 1).

        Where memory does not suffice, the batch is halved, down to one crop; then, and where an accelerator fails, the CPU
        computes.
        """
        import tensorflow as tf

        found, start = [], 0
        with tf.device(CPU):  # else the batch is divided on an accelerator, which may have failed
            crops, tabular = tf.convert_to_tensor(crops), tf.convert_to_tensor(tabular)
            while start < len(crops):
                rows = slice(start, min(start + (self._at_once or len(crops)), len(crops)))
                try:
                    found.append(self._shared(crops[rows], tabular[rows]))
                    start = rows.stop
                except tf.errors.ResourceExhaustedError:
                    self._take_less(rows.stop - start)
                except tf.errors.OpError as error:
                    if list(self.functions) == [CPU]:
                        raise
                    self._leave_accelerators(error)
        return np.concatenate(found).astype("float64")

    def _shared(self, crops, tabular) -> np.ndarray:
        """A batch that fits into memory: a part on each device, all started before the first one is waited for."""
        parts = np.array_split(np.arange(len(crops)), len(self.functions))
        results = []
        for function, part in zip(self.functions.values(), parts, strict=True):
            if len(part):
                rows = slice(part[0], part[-1] + 1)
                results.append(function(crops[rows], tabular[rows]))
        return np.concatenate([result.numpy() for result in results])[:, 0]

    def _leave_accelerators(self, error: Exception) -> None:
        """Changes to the CPU: a driver, a library or the memory of an accelerator failed."""
        self.functions = {CPU: self._function_on(CPU)}
        reason = (str(error).strip().splitlines() or [""])[0]
        self.note("accelerator_failed", 1, f"{type(error).__name__}: {reason}; the CPU computes from now on.")

    def _take_less(self, tried: int) -> None:
        """Halves the number of crops computed at once; after a single crop, changes to the CPU."""
        if tried > 1:
            self._at_once = tried // 2
            self.note("accelerator_memory", 1, f"{tried} crops did not fit; {self._at_once} at a time from now on.")
        elif list(self.functions) != [CPU]:
            self.functions = {CPU: self._function_on(CPU)}
            self.note("accelerator_memory", 1, "a single crop did not fit; the CPU computes from now on.")
        else:
            raise MemoryError("a single crop does not fit into the memory of the CPU")


def network_logits(ensemble: Ensemble, batches: Iterable, tabular: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Mean logits of the networks, batch by batch; each crop is decoded once for all of them.

    Args:
        ensemble: the networks.
        batches: (positions, crops), as ``image_batches`` gives them.
        tabular: logits of every lesion, shape (rows,); ``positions`` point into it.

    Yields:
        Positions, int64, and logits, float64, both of shape (batch,).
    """
    for positions, crops in batches:
        positions = positions.numpy()
        yield positions, ensemble.logits(crops, tabular[positions, None].astype("float32"))
