"""TensorFlow without graphs."""

from contextlib import contextmanager


@contextmanager
def without_graphs():
    """TensorFlow without graphs: a training of a few steps takes seconds where tracing ResNet50 takes many."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)
