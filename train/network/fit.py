"""How a network is fitted: where it starts, which stages learn and when, augmentation, losses, the loop over epochs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from inference.network import NetworkConfig, build_network
from train.network.augmentation import DRAWS, augment
from train.network.checkpoint import Checkpoint
from utils import InputError

#: Which stages of ResNet50 learn: name prefixes of their layers. Frozen stages keep their batch-norm statistics too.
UNFREEZE = {"none": (), "conv5": ("conv5_",), "conv4": ("conv4_", "conv5_"), "all": ("conv", "bn")}
BACKBONE = "resnet50"


def starting_network(config: NetworkConfig, weights: str):
    """The network before training; ``weights`` is "imagenet", "none" or the path of ResNet50 weights without top.

    Raises:
        InputError: the weights cannot be had or do not fit; the sentence names the other choices.
    """
    choices = "--weights PATH (resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5) or --weights none"
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
        raise InputError(f"ResNet50 weights {weights!r} cannot be had ({reason}); give {choices}.") from error


def unfreeze(network, choice: str, from_scratch: bool, replicas: int = 1) -> None:
    """Lets the head and the chosen stages learn; the rest is frozen, batch norms included.

    From random weights the batch norms follow the batches faster: a short training leaves Keras's default statistics, which
    remember a hundred steps, behind the weights. Over several devices they see the whole batch, not each its part.
    """
    for layer in network.get_layer(BACKBONE).layers if "crop" in input_names(network) else ():
        layer.trainable = layer.name.startswith(UNFREEZE[choice])
        if hasattr(layer, "momentum"):
            layer.synchronized = replicas > 1
            if from_scratch:
                layer.momentum = 0.9


def input_names(model) -> list[str]:
    """What a model asks for."""
    return [tensor.name for tensor in model.inputs]


def augmented(network):
    """``network`` behind its augmentation, on the accelerator.

    Returns:
        A model of the same inputs, "draws" beside them (``train.network.augmentation``), and the same output. It
        shares the weights of ``network``, which stays uncompiled, so that saving that one saves weights only.
    """
    import keras

    inputs = {tensor.name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name) for tensor in network.inputs}
    if "crop" not in inputs:
        return keras.Model(inputs, network(inputs))
    draws = keras.Input((DRAWS,), name="draws", dtype="float32")
    return keras.Model(inputs | {"draws": draws}, network(inputs | {"crop": augment(inputs["crop"], draws)}))


def with_source(model):
    """``model`` for lesions of two sources: those whose input "archive" is 1 get logits of their own added.

    The addition, one weight, stays outside of the network: what an archive's selection does to the odds is learned there,
    and no lesion of a test is ever asked for its source.

    Args:
        model: from named inputs to logits (batch, 1).
    """
    import keras

    source = keras.Input((1,), name="archive", dtype="float32")
    addition = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="archive_offset", dtype="float32")
    added = keras.layers.Add(dtype="float32")([model.output, addition(source)])
    return keras.Model({**model.input, "archive": source}, added)


@dataclass(frozen=True)
class Phase:
    """A part of a training with stages and a learning rate of its own; its epochs are those from ``first`` to ``last``."""

    name: str
    unfreeze: str
    first: int
    last: int
    learning_rate: float


def phases_of(
    unfreeze: str, epochs: int, learning_rate: float, head_epochs: int = 0, head_learning_rate: float = 0.0
) -> list[Phase]:
    """First the head alone, with the backbone frozen, then the chosen stages with it."""
    if unfreeze == "none":
        return [Phase("head", "none", 0, head_epochs + epochs, head_learning_rate or learning_rate)]
    stages = Phase("stages", unfreeze, head_epochs, head_epochs + epochs, learning_rate)
    return [Phase("head", "none", 0, head_epochs, head_learning_rate), stages] if head_epochs else [stages]


@dataclass(frozen=True)
class Plan:
    """How a network is fitted, beside the rows it sees."""

    phases: Sequence[Phase]
    steps: int  # batches per epoch
    batch_size: int
    from_scratch: bool
    loss: Callable
    ema: float = 0.0
    seed: int = 0


def fit(
    network,
    wrap: Callable,
    batches_from: Callable,
    plan: Plan,
    description: str,
    checkpoint: Checkpoint | None = None,
    logs: Path | None = None,
    strategy=None,
) -> list[dict]:
    """Fits a network for a fixed number of epochs; nothing is chosen on any row, the last weights stay.

    Args:
        network: as ``starting_network`` makes it; it learns in place.
        wrap: makes of it the model to fit, for instance ``augmented``.
        batches_from: from the number of an epoch to the ``tf.data.Dataset`` of (inputs by name, targets, weights) that
            begins there; inputs the model lacks are left out.
        plan: phases and all that is the same in them.
        description: what the progress bar says.
        checkpoint: where each epoch is kept, and whence an interrupted training goes on.
        logs: folder for TensorBoard.
        strategy: that ``network`` was made in (``train.network.fit.distribution``).

    Returns:
        One record per epoch: "phase", "epoch", "loss", "learning_rate", "seconds", "images_per_second".
    """
    import keras
    import tensorflow as tf

    strategy = strategy or tf.distribute.get_strategy()
    strategy = strategy or tf.distribute.get_strategy()
    checkpoint = checkpoint or Checkpoint(None)
    done, total = checkpoint.epochs, plan.phases[-1].last
    with tqdm(total=plan.steps * total, initial=plan.steps * done, desc=description, unit="step") as bar:
        for phase in plan.phases:
            if done > phase.last:
                continue
            with strategy.scope():
                unfreeze(network, phase.unfreeze, plan.from_scratch, strategy.num_replicas_in_sync)
                model = wrap(network)
                optimizer = adamw(plan.steps * (phase.last - phase.first), phase.learning_rate, plan.ema)
                optimizer.build(model.trainable_variables)  # made in the first step, it would have that step traced twice
                model.compile(optimizer=optimizer, loss=plan.loss, jit_compile=False)
            start = max(phase.first, done)
            if phase.first < done:
                checkpoint.load(model)
            names = input_names(model)
            batches = batches_from(start).map(lambda inputs, *rest, names=names: ({n: inputs[n] for n in names}, *rest))
            callbacks = [each_epoch(network, phase, plan, bar, checkpoint)]
            if logs:
                callbacks.append(keras.callbacks.TensorBoard(logs, write_graph=False))
            # Repeated, because an image that turns unreadable would leave the last epoch short of batches.
            model.fit(
                batches.repeat(),
                initial_epoch=start,
                epochs=phase.last,
                steps_per_epoch=plan.steps,
                callbacks=callbacks,
                verbose=0,
            )
            done = phase.last
    return checkpoint.history


def each_epoch(network, phase: Phase, plan: Plan, bar: tqdm, checkpoint: Checkpoint):
    """A Keras callback: moves the bar, and after each epoch keeps what an interrupted training needs."""
    import keras

    class EachEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.started = time.monotonic()
            # Dropout counts its draws; from here it draws the same whether or not the training was interrupted before.
            for layer in network.layers:
                if hasattr(layer, "seed_generator"):
                    layer.seed_generator.state.assign([plan.seed, epoch << 16])

        def on_train_batch_end(self, batch, logs=None):
            bar.update()

        def on_epoch_end(self, epoch, logs=None):
            seconds = time.monotonic() - self.started
            record = {
                "phase": phase.name,
                "epoch": epoch + 1,
                "loss": float(logs["loss"]),
                "learning_rate": float(self.model.optimizer.learning_rate),
                "seconds": round(seconds, 3),
                "images_per_second": round(plan.steps * plan.batch_size / seconds, 1),
            }
            checkpoint.save(self.model, record)
            bar.set_postfix(loss=f"{record['loss']:.4f}")

    return EachEpoch()


def shifted_loss(shift: float, smoothing: float = 0.0, gamma: float = 0.0):
    """Binary cross-entropy of logits to which ``shift`` is added: the prior correction of ``train.network.sampling``.

    Args:
        shift: in logits.
        smoothing: labels 0 and 1 become smoothing / 2 and 1 - smoothing / 2.
        gamma: above 0, the focal loss's exponent (Lin et al. 2017): each term is multiplied by (1 - p of its label)^gamma.
    """
    import keras

    def loss(labels, logits):
        labels = labels * (1.0 - smoothing) + smoothing / 2.0
        if gamma:
            return keras.losses.binary_focal_crossentropy(labels, logits + shift, gamma=gamma, from_logits=True)
        return keras.losses.binary_crossentropy(labels, logits + shift, from_logits=True)

    return loss


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


WARM_UP = 0.1  # share of the steps
WEIGHT_DECAY = 1e-4


def adamw(steps: int, learning_rate: float, ema: float = 0.0):
    """Keras's AdamW, its update done by TensorFlow's fused kernel: the same formula, a fraction of the memory traffic.

    ResNet50 has 23.6 million weights in 161 arrays, and Keras's own update walks over them a dozen times.

    Args:
        steps: of the whole training: the schedule is a warm-up over a tenth of them, then a cosine decay to zero.
        learning_rate: its peak.
        ema: momentum of the weights' moving average, which replaces them at the end; 0 for none.
    """
    import keras
    import tensorflow as tf

    class FusedAdamW(keras.optimizers.AdamW):
        """AdamW whose ``update_step`` is one operation (Kingma and Ba 2015, algorithm 1 in its efficient order)."""

        def update_step(self, gradient, variable, learning_rate):
            index = self._get_variable_index(variable)
            step = tf.cast(self.iterations + 1, tf.float32)
            first, second, target = (
                getattr(each, "value", each) if isinstance(each, keras.Variable) else each
                for each in (self._momentums[index], self._velocities[index], variable)
            )
            tf.raw_ops.ResourceApplyAdam(
                var=target.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=tf.pow(self.beta_1, step),
                beta2_power=tf.pow(self.beta_2, step),
                lr=tf.cast(learning_rate, tf.float32),
                beta1=self.beta_1,
                beta2=self.beta_2,
                epsilon=self.epsilon,
                grad=tf.cast(gradient, tf.float32),
            )

    warm_up = round(WARM_UP * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 100, max(1, steps - warm_up), warmup_target=learning_rate, warmup_steps=warm_up
    )
    average = {"use_ema": True, "ema_momentum": ema} if ema else {}
    return FusedAdamW(schedule, weight_decay=WEIGHT_DECAY, **average)
