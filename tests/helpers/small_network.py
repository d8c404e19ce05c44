"""The project's own network around a backbone of two convolutions, for tests that are not about ResNet50: traced at once."""

from unittest import mock

from inference.network import NetworkConfig, build_network


def small_backbone(input_tensor, name, **_):
    """Stands for ``keras.applications.ResNet50``, with two stages of the same layer names; random weights."""
    import keras
    from keras import layers

    first = layers.BatchNormalization(name="conv4_bn")(layers.Conv2D(4, 5, strides=4, name="conv4_conv")(input_tensor))
    second = layers.BatchNormalization(name="conv5_bn")(layers.Conv2D(4, 3, activation="relu", name="conv5_conv")(first))
    return keras.Model(input_tensor, layers.GlobalAveragePooling2D(name="avg_pool")(second), name=name)


def a_network(dropout=0.5):
    """From 32-px crops and tabular logits to logits; the same initial weights every time."""
    import keras

    keras.utils.set_random_seed(0)
    with mock.patch("keras.applications.ResNet50", small_backbone):
        network = build_network(NetworkConfig(32, head_units=8, head_dropout=dropout))
    correction = network.get_layer("correction")  # of zeros, it would keep the backbone from learning in the first step
    kernel = keras.random.normal(correction.kernel.shape, stddev=0.3, seed=0)
    correction.kernel.assign(kernel)
    return network


class UnchangedImages:
    """Stands for ``KnownImages`` where batches are made up."""

    def refuse_changes(self):
        pass
