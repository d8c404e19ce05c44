"""What the networks are trained on: all accelerators of this machine, their fastest safe precision, determinism."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

#: "auto": float16 with a float32 head and output where there is a GPU, else float32.
PRECISIONS = ("auto", "float32", "mixed_float16")


def distribution(devices: Sequence[str] | None = None):
    """How a step is shared out: over all GPUs of this machine, or over ``devices``; one device alone needs nothing.

    Returns:
        A ``tf.distribute.Strategy``: ``MirroredStrategy`` for several devices, else the one that does nothing.
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
    """From here on, this process uses no GPU: TensorFlow would take all of its memory. To be called before it is used."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")


def be_deterministic(on_gpu: bool) -> None:
    """From here on, the same operations on the same numbers give the same bytes.

    A CPU hardly becomes slower by it, so there it is always done; a GPU does.
    """
    import tensorflow as tf

    if on_gpu or not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()
