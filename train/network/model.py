"""The network before training: its initial weights, its trainable stages, and the model around it that is fitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inference.backbones import backbone_of, stage_of
from inference.network import NetworkConfig, build_network
from train.network.augmentation import AUGMENTATIONS, DRAWS, augment
from train.network.config import UNFREEZE
from train.network.imagenet_weights import IMAGENET_FILES
from utils import InputError


def starting_network(config: NetworkConfig, weights: str):
    """The network before training, uncompiled.

    Args:
        config: what to build.
        weights: "imagenet" (where Keras has them), "none" (random), or the path of a weights file of the backbone, as
            ``initial_weights_file`` gives it.

    Raises:
        InputError: the weights cannot be fetched or read, or do not fit.
    """
    choices = f"--weights PATH ({IMAGENET_FILES[config.backbone]}) or --weights none"
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise InputError(f"--weights {weights!r} is no file; give {choices}, or --weights imagenet to download it.")
    try:
        return build_network(config, None if weights == "none" else weights)
    except InputError:
        raise
    except Exception as error:  # Keras passes on whatever urllib or h5py raise
        if weights == "none":
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{config.backbone} weights {weights!r} cannot be loaded ({reason}); give {choices}.") from error


def unfreeze(network, choice: str, from_scratch: bool, batch_norm: str = "trainable", replicas: int = 1) -> None:
    """Makes the head and the chosen stages trainable; the rest is frozen, batch norms included.

    Args:
        network: of ``starting_network``, changed in place.
        choice: a key of ``UNFREEZE``.
        batch_norm: of ``BATCH_NORMS``, for the batch norms of the chosen stages.
        from_scratch: whether the backbone started from random weights. Then its batch norms follow the batches faster: in a
            short training Keras's default statistics, a mean over a hundred steps, lag behind the weights.
        replicas: devices that share a batch; with several, batch norms use the statistics of the whole batch.
    """
    backbone = backbone_of(network)
    for layer in backbone.layers if backbone else ():
        layer.trainable = (stage_of(backbone, layer.name) or 0) >= UNFREEZE[choice]
        if hasattr(layer, "momentum"):
            layer.trainable &= batch_norm == "trainable"
            layer.synchronized = replicas > 1
            if from_scratch:
                layer.momentum = 0.9


def input_names(model) -> list[str]:
    """The names of a model's inputs."""
    return [tensor.name for tensor in model.inputs]


def augmented(network, augmentation: str = "light"):
    """``network`` behind its augmentation, a key of ``AUGMENTATIONS``, on the accelerator.

    Returns:
        A model of the same inputs, "draws" beside them (``train.network.augmentation``), and the same output. It
        shares the weights of ``network``, which stays uncompiled, so that saving that one saves weights only.
    """
    import keras

    inputs = {tensor.name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name) for tensor in network.inputs}
    if "crop" not in inputs:
        return keras.Model(inputs, network(inputs))
    draws = keras.Input((DRAWS,), name="draws", dtype="float32")
    crops = augment(inputs["crop"], draws, AUGMENTATIONS[augmentation])
    return keras.Model(inputs | {"draws": draws}, network(inputs | {"crop": crops}))


def with_groups(network, head):
    """``network`` with a second head, for the diagnosis groups. It shares its weights, and leaves ``network`` as it is.

    Args:
        network: of ``inference.network.build_network``, with a crop.
        head: the layer from the backbone's features to a logit of each group; behind their dropout.

    Returns:
        A model of the same inputs. Its outputs, (batch, 1 + groups), are the network's logit and those of the groups.
    """
    import keras

    takers = ("crop_and_tabular_logit", "head", "correction")
    taken = next(layer for layer in network.layers if layer.name in takers).input
    features = taken[0] if isinstance(taken, list) else taken
    join = keras.layers.Concatenate(name="logit_and_groups", dtype="float32")
    return keras.Model(network.input, join([network.output, head(features)]))


def with_source(model, offset):
    """``model`` with one more weight an output: a constant that is added for archive lesions (input "archive" is 1).

    The constant stays outside of the network. It learns how an archive's selection changes the odds; a test lesion has no
    source, and needs none.

    Args:
        model: from named inputs to logits (batch, 1), or those of ``with_groups``.
        offset: the layer from the source to what is added to each logit.
    """
    import keras

    source = keras.Input((1,), name="archive", dtype="float32")
    logits = keras.layers.Add(dtype="float32")([model.output, offset(source)])
    return keras.Model({**model.input, "archive": source}, logits)


# Hardware


def distribution(devices: Sequence[str] | None = None):
    """How a step is shared out: over all GPUs of this machine, or over ``devices``.

    Returns:
        A ``tf.distribute.Strategy``: ``MirroredStrategy`` for several devices, else TensorFlow's default.
    """
    import tensorflow as tf

    devices = devices or [device.name for device in tf.config.list_logical_devices("GPU")]
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()


@contextmanager
def precision(choice: str) -> Iterator[str]:
    """Layers made inside compute in ``choice`` of ``PRECISIONS``, layers made after it as before; yields Keras's name."""
    import keras
    import tensorflow as tf

    if choice == "auto":
        choice = "mixed_float16" if tf.config.list_physical_devices("GPU") else "float32"
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(choice)
    try:
        yield choice
    finally:
        keras.config.set_dtype_policy(before)


def leave_gpus_to_tasks() -> None:
    """Hides the GPUs from this process: TensorFlow would take all of their memory. To be called before it is used."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")


def be_deterministic(on_gpu: bool) -> None:
    """From here on, the same operations on the same numbers give the same bytes.

    A CPU hardly becomes slower by it, so there it is always done; a GPU does.
    """
    import tensorflow as tf

    if on_gpu or not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()
