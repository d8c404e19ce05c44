"""The fusion network: ResNet50 looks at the crop, and corrects CatBoost's opinion.

    final logits = tabular logits + correction(crop, tabular logits)

The correction's last layer starts at zero, so before the first training step the network *is* the tabular model and can
only move away from it where pixels say so. Its weights are loaded into this code, never a saved configuration: those break
between Keras versions.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils import InputError

if TYPE_CHECKING:
    import keras

# TensorFlow and Keras are imported where they are used: they take seconds, and the kernel must reach its tabular
# submission even where they cannot be imported. These settings are read at that first import.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# By itself TensorFlow uses oneDNN only where the processor has AVX-512; it is several times faster without that, too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# One network after another is traced, by design; TensorFlow would warn of it on every fold.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

#: ResNet50 was trained on BGR pixels less the ImageNet mean (keras.applications, "caffe" mode).
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
SMALLEST_IMAGE = 32
CPU = "/device:CPU:0"
#: Values of a network's trainable and other variables, each in the network's order.
State = tuple[list, list]


def build_network(
    image_size: int,
    *,
    inputs: Sequence[str] = ("crop", "tabular"),
    tabular_mean: float = 0.0,
    tabular_std: float = 1.0,
    head_units: int = 64,
    head_dropout: float = 0.2,
    base_logit: float = 0.0,
    backbone_weights: str | None = None,
) -> keras.Model:
    """Builds the network, uncompiled.

    Args:
        image_size: width and height of the crops, pixels; at least 32.
        inputs: ("crop", "tabular") for the fusion; ("crop",) for the image alone; ("tabular",) for the opinion alone.
        tabular_mean: mean of the tabular logits in training, for the head's copy of it.
        tabular_std: their standard deviation.
        head_units: width of the head.
        head_dropout: share of the head that rests in each training step.
        base_logit: where the image alone starts: the logits of the prevalence. The fusion starts from the tabular
            score and ignores it.
        backbone_weights: None for random weights, "imagenet", or the path of a ResNet50 weights file without its top.

    Returns:
        A model from {"crop": uint8 (batch, image_size, image_size, 3), "tabular": float32 (batch, 1)} to logits,
        float32 of shape (batch, 1).

    Raises:
        InputError: image_size is below 32.
    """
    import keras
    from keras import layers

    if image_size < SMALLEST_IMAGE:
        raise InputError(f"image size {image_size} is too small for ResNet50; use at least {SMALLEST_IMAGE}.")
    asked, seen = {}, []
    if "crop" in inputs:
        asked["crop"] = keras.Input((image_size, image_size, 3), name="crop", dtype="uint8")
        pixels = layers.Rescaling(1.0, name="float_pixels", dtype="float32")(asked["crop"])
        bgr = keras.ops.flip(pixels, axis=-1)
        mean = [-level for level in IMAGENET_MEAN_BGR]
        centred = layers.Rescaling(1.0, offset=mean, name="less_imagenet_mean", dtype="float32")(bgr)
        backbone = keras.applications.ResNet50(
            include_top=False,
            weights=backbone_weights,
            # Named here: Keras would count its inputs, and weights files keep the name.
            input_tensor=keras.Input((image_size, image_size, 3), name="centred_pixels"),
            pooling="avg",
            name="resnet50",
        )
        seen.append(backbone(centred))
    if "tabular" in inputs:
        asked["tabular"] = keras.Input((1,), name="tabular", dtype="float32")
        offset = -tabular_mean / tabular_std
        standardised = layers.Rescaling(1.0 / tabular_std, offset=offset, name="standardised_opinion", dtype="float32")
        seen.append(standardised(asked["tabular"]))
    # The head computes in float32 whatever the backbone does: its small corrections would drown in half precision.
    joined = layers.Concatenate(name="crop_and_opinion", dtype="float32")(seen) if len(seen) > 1 else seen[0]
    hidden = layers.Dense(head_units, activation="relu", name="head", dtype="float32")(joined)
    hidden = layers.Dropout(head_dropout, name="head_dropout", dtype="float32")(hidden)
    start = keras.initializers.Constant(0.0 if "tabular" in inputs else base_logit)
    correction = layers.Dense(1, kernel_initializer="zeros", bias_initializer=start, dtype="float32", name="correction")(
        hidden
    )
    if "tabular" not in inputs:
        return keras.Model(asked, correction, name="image_only")
    logits = layers.Add(dtype="float32", name="final_logits")([asked["tabular"], correction])
    return keras.Model(asked, logits, name="fusion" if "crop" in inputs else "tabular_only")


def load_network(settings: dict, weights: Path) -> keras.Model:
    """Rebuilds a trained network from the manifest's settings and loads its weights.

    Raises:
        InputError: the weights do not fit the network.
    """
    network = build_network(**settings)
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
        except OSError:  # locked, by somebody or by a file system that knows no locks: a copy of our own is not
            with tempfile.TemporaryDirectory() as folder:
                network.load_weights(shutil.copy(weights, folder))
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{weights.name} does not fit the network of the manifest ({reason}); train again.") from error


def _state_of(network: keras.Model) -> State:
    import tensorflow as tf

    return tuple([tf.identity(variable.value) for variable in group] for group in _variables(network))


def _variables(network: keras.Model) -> tuple[list, list]:
    """A network's variables in the two groups that Keras's ``stateless_call`` asks for."""
    return network.trainable_variables, network.non_trainable_variables


def devices() -> list[str]:
    """The accelerators of this machine by their logical names, or its CPU."""
    import tensorflow as tf

    return [device.name for device in tf.config.list_logical_devices("GPU")] or [CPU]


class Ensemble:
    """Fold networks as one function of a batch: each crop goes once to every network, shared out over all accelerators.

    The networks are one network with the weights of each in turn: building and tracing a ResNet50 takes seconds, and what
    differs between folds is numbers.

    Args:
        network: as ``build_network`` makes it.
        states: the weights of each fold, as ``load_state`` gives them; the network's own, if not given.
        places: logical devices that share a batch.
        note: told, like ``Run.fall_back``, when memory does not suffice: what, how often, and a sentence.
    """

    def __init__(
        self,
        network: keras.Model,
        states: Sequence[State] | None = None,
        places: Sequence[str] = (CPU,),
        note: Callable[[str, int, str], None] = lambda what, count, text: None,
    ) -> None:
        import tensorflow as tf

        self._network, self._note = network, note
        self._at_once: int | None = None  # crops that fit into memory, once they did not
        self._names = [tensor.name for tensor in network.inputs]
        size = {tensor.name: tensor.shape[1:] for tensor in network.inputs}.get("crop", (None, None, 3))
        # Of any number of crops, so that the last, smaller batch is not traced anew.
        batch = tf.TensorSpec((None, *size), tf.uint8), tf.TensorSpec((None, 1), tf.float32)
        state = tuple([tf.TensorSpec(value.shape, value.dtype) for value in group] for group in _variables(network))
        # Traced here: a tf.function that is called would compare hundreds of weights to what it knows, each time.
        self._one = tf.function(self._logits_of_one).get_concrete_function(*batch, state)
        self._states = [_state_of(network)] if states is None else list(states)
        self.functions = {place: self._function_on(place) for place in places}

    def _logits_of_one(self, crops, opinion, state: State):
        batch = {name: {"crop": crops, "tabular": opinion}[name] for name in self._names}
        return self._network.stateless_call(*state, batch, training=False)[0]

    def _function_on(self, place: str) -> Callable:
        """The mean of all folds' logits of (crops, opinion), on a device; what it returns may still be under way."""
        import tensorflow as tf

        with tf.device(place):
            states = [tf.nest.map_structure(tf.identity, state) for state in self._states]

        def mean(crops, opinion):
            with tf.device(place):
                return tf.add_n([self._one(crops, opinion, state) for state in states]) / len(states)

        return mean

    def logits(self, crops, opinion) -> np.ndarray:
        """Mean logits, float64 of shape (rows,), of crops uint8 (rows, size, size, 3) and opinions float32 (rows, 1).

        Where memory does not suffice, by halves from then on, in the end one by one, at last on the CPU.
        """
        import tensorflow as tf

        crops, opinion = tf.convert_to_tensor(crops), tf.convert_to_tensor(opinion)
        found, start = [], 0
        while start < len(crops):
            rows = slice(start, start + (self._at_once or len(crops)))
            try:
                found.append(self._shared(crops[rows], opinion[rows]))
                start = rows.stop
            except tf.errors.ResourceExhaustedError:
                self._take_less(len(crops[rows]))
        return np.concatenate(found).astype("float64")

    def _shared(self, crops, opinion) -> np.ndarray:
        """A batch that fits into memory: a part on each device, all started before the first one is waited for."""
        parts = np.array_split(np.arange(len(crops)), len(self.functions))
        results = []
        for function, part in zip(self.functions.values(), parts, strict=True):
            if len(part):
                rows = slice(part[0], part[-1] + 1)
                results.append(function(crops[rows], opinion[rows]))
        return np.concatenate([result.numpy() for result in results])[:, 0]

    def _take_less(self, tried: int) -> None:
        """Half of what was tried from now on; of a single crop, the CPU."""
        if tried > 1:
            self._at_once = tried // 2
            self._note("accelerator memory", 1, f"{tried} crops did not fit; {self._at_once} at a time from here on.")
        elif list(self.functions) != [CPU]:
            self.functions = {CPU: self._function_on(CPU)}
            self._note("accelerator memory", 1, "a single crop did not fit; the CPU goes on.")
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
