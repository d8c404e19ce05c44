"""How a network is fitted: where it starts, which stages learn, augmentation, optimizer, the loop with its progress bar."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from inference.files import InputError
from inference.network import build_network

#: Which stages of ResNet50 learn: name prefixes of their layers. Frozen stages keep their batch-norm statistics too.
UNFREEZE = {"none": (), "conv5": ("conv5_",), "conv4": ("conv4_", "conv5_"), "all": ("conv", "bn")}
BACKBONE = "resnet50"
WARM_UP = 0.1  # share of the steps
WEIGHT_DECAY = 1e-4


def starting_network(settings: dict, weights: str):
    """The network before training; ``weights`` is "imagenet", "none" or the path of ResNet50 weights without top.

    Raises:
        InputError: the weights cannot be had or do not fit; the sentence names the other choices.
    """
    choices = "--weights PATH (resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5) or --weights none"
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise InputError(f"--weights {weights!r} is no file; give {choices}, or --weights imagenet to download it.")
    try:
        return build_network(**settings, backbone_weights=None if weights == "none" else weights)
    except InputError:
        raise
    except Exception as error:  # Keras passes on whatever urllib or h5py raise
        if weights == "none":
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"ResNet50 weights {weights!r} cannot be had ({reason}); give {choices}.") from error


def unfreeze(network, choice: str, from_scratch: bool) -> None:
    """Lets the head and the chosen stages learn; the rest is frozen, batch norms included.

    From random weights the batch norms follow the batches faster: a short training leaves Keras's default statistics, which
    remember a hundred steps, behind the weights.
    """
    for layer in network.get_layer(BACKBONE).layers:
        layer.trainable = layer.name.startswith(UNFREEZE[choice])
        if from_scratch and hasattr(layer, "momentum"):
            layer.momentum = 0.9


def augmented(network):
    """``network`` behind its augmentation, on the accelerator: flips, small turns, brightness and contrast.

    Returns:
        A model of the same inputs and output. It shares the weights of ``network``, which stays uncompiled, so that saving
        that one saves weights only.
    """
    import keras
    from keras import layers

    augmentation = [
        layers.RandomFlip("horizontal_and_vertical"),
        layers.RandomRotation(0.08, fill_mode="reflect"),
        layers.RandomBrightness(0.08, value_range=(0, 255)),
        layers.RandomContrast(0.1, value_range=(0, 255)),
    ]
    inputs = {tensor.name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name) for tensor in network.inputs}
    crop = layers.Rescaling(1.0)(inputs["crop"])
    for layer in augmentation:
        crop = layer(crop)
    crop = keras.ops.cast(keras.ops.clip(keras.ops.round(crop), 0, 255), "uint8")
    return keras.Model(inputs, network(inputs | {"crop": crop}))


def with_source(model):
    """``model`` for lesions of two sources: those whose input "archive" is 1 get log-odds of their own added.

    The addition, one weight, stays outside of the network: what an archive's selection does to the odds is learned there,
    and no lesion of a test is ever asked for its source.

    Args:
        model: from named inputs to log-odds (batch, 1).
    """
    import keras

    source = keras.Input((1,), name="archive", dtype="float32")
    addition = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="archive_offset")
    return keras.Model({**model.input, "archive": source}, keras.layers.Add()([model.output, addition(source)]))


def fit(model, batches, loss, *, steps: int, epochs: int, learning_rate: float, description: str) -> None:
    """Fits ``model`` for a fixed number of steps; nothing is chosen on any row, the last weights stay.

    Args:
        model: uncompiled.
        batches: a ``tf.data.Dataset`` of (inputs by name, targets) for all epochs; inputs the model lacks are left out.
        loss: a Keras loss, or a function of (targets, outputs).
        steps: batches per epoch.
        epochs: how many.
        learning_rate: its peak, after a warm-up and before a cosine decay.
        description: what the progress bar says.
    """
    import keras

    warm_up = round(WARM_UP * steps * epochs)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 100, max(1, steps * epochs - warm_up), warmup_target=learning_rate, warmup_steps=warm_up
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=WEIGHT_DECAY)
    optimizer.build(model.trainable_variables)  # made in the first step, its variables would have that step traced twice
    model.compile(optimizer=optimizer, loss=loss, jit_compile=False)
    names = [tensor.name for tensor in model.inputs]
    batches = batches.map(lambda inputs, targets: ({name: inputs[name] for name in names}, targets))
    with tqdm(total=steps * epochs, desc=description, unit="step") as bar:
        progress = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: bar.update(),
            on_epoch_end=lambda epoch, logs: bar.set_postfix(loss=f"{logs['loss']:.4f}"),
        )
        # Repeated, because unreadable images could leave the last epoch short of batches.
        model.fit(batches.repeat(), epochs=epochs, steps_per_epoch=steps, callbacks=[progress], verbose=0)


def shifted_loss(shift: float):
    """Binary cross-entropy of log-odds to which ``shift`` is added: what sampling did to the odds (``prior_shift``)."""
    import keras

    def loss(labels, log_odds):
        return keras.losses.binary_crossentropy(labels, log_odds + shift, from_logits=True)

    return loss
