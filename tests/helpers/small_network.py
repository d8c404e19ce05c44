"""A network of the same parts as the real one, for what is about training and not about ResNet50: it is traced at once."""


def a_network(dropout=0.5):
    """From 32-px crops and opinions to logits; its "resnet50" has two convolutions, in two stages."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    pixels = keras.Input((32, 32, 3))
    first = layers.BatchNormalization(name="conv4_bn")(layers.Conv2D(4, 5, strides=4, name="conv4_conv")(pixels))
    second = layers.BatchNormalization(name="conv5_bn")(layers.Conv2D(4, 3, activation="relu", name="conv5_conv")(first))
    backbone = keras.Model(pixels, layers.GlobalAveragePooling2D()(second), name="resnet50")
    crop, tabular = keras.Input((32, 32, 3), name="crop", dtype="uint8"), keras.Input((1,), name="tabular")
    seen = layers.Concatenate()([backbone(layers.Rescaling(1 / 255)(crop)), tabular])
    hidden = layers.Dropout(dropout, name="head_dropout")(layers.Dense(8, activation="relu", name="head")(seen))
    correction = layers.Dense(1, name="correction")(hidden)
    return keras.Model({"crop": crop, "tabular": tabular}, layers.Add()([tabular, correction]))
