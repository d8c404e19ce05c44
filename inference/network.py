"""The fusion network: ResNet50 looks at the crop, and corrects CatBoost's opinion.

    final log-odds = tabular log-odds + correction(crop, tabular log-odds)

The correction's last layer starts at zero, so before the first training step the network *is* the tabular model and can
only move away from it where pixels say so. Its weights are loaded into this code, never a saved configuration: those break
between Keras versions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference.files import InputError

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


def build_network(
    image_size: int,
    *,
    inputs: Sequence[str] = ("crop", "tabular"),
    tabular_mean: float = 0.0,
    tabular_std: float = 1.0,
    head_units: int = 64,
    head_dropout: float = 0.2,
    base_log_odds: float = 0.0,
    backbone_weights: str | None = None,
) -> keras.Model:
    """Builds the network, uncompiled.

    Args:
        image_size: width and height of the crops, pixels; at least 32.
        inputs: ("crop", "tabular") for the fusion; ("crop",) for the image alone; ("tabular",) for the opinion alone.
        tabular_mean: mean of the tabular log-odds in training, for the head's copy of it.
        tabular_std: their standard deviation.
        head_units: width of the head.
        head_dropout: share of the head that rests in each training step.
        base_log_odds: where the image alone starts: the log-odds of the prevalence. The fusion starts from the tabular
            score and ignores it.
        backbone_weights: None for random weights, "imagenet", or the path of a ResNet50 weights file without its top.

    Returns:
        A model from {"crop": uint8 (batch, image_size, image_size, 3), "tabular": float32 (batch, 1)} to log-odds,
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
    start = keras.initializers.Constant(0.0 if "tabular" in inputs else base_log_odds)
    correction = layers.Dense(1, kernel_initializer="zeros", bias_initializer=start, dtype="float32", name="correction")(
        hidden
    )
    if "tabular" not in inputs:
        return keras.Model(asked, correction, name="image_alone")
    log_odds = layers.Add(dtype="float32", name="log_odds")([asked["tabular"], correction])
    return keras.Model(asked, log_odds, name="fusion" if "crop" in inputs else "opinion_alone")


def load_network(settings: dict, weights: Path) -> keras.Model:
    """Rebuilds a trained network from the manifest's settings and loads its weights.

    Raises:
        InputError: the weights do not fit the network.
    """
    network = build_network(**settings)
    try:
        network.load_weights(weights)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{weights.name} does not fit the network of the manifest ({reason}); train again.") from error
    return network


def network_log_odds(
    networks: Sequence[keras.Model], batches: Iterable, tabular: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Mean log-odds of the networks, batch by batch; each crop is decoded once for all of them.

    Args:
        networks: of the same inputs, as ``build_network`` makes them.
        batches: (positions, crops), as ``image_batches`` gives them.
        tabular: log-odds of every lesion, shape (rows,); ``positions`` point into it.

    Yields:
        Positions, int64, and log-odds, float64, both of shape (batch,).
    """
    import tensorflow as tf

    names = [tensor.name for tensor in networks[0].inputs]

    @tf.function(reduce_retracing=True)
    def ensemble(crops, opinion):
        batch = {name: {"crop": crops, "tabular": opinion}[name] for name in names}
        return tf.add_n([network(batch, training=False) for network in networks]) / len(networks)

    for positions, crops in batches:
        positions = positions.numpy()
        opinion = tf.constant(tabular[positions, None], tf.float32)
        yield positions, ensemble(crops, opinion).numpy()[:, 0].astype("float64")
