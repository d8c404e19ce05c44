"""How a network is fitted: phases of trainable stages, the loss with its prior correction, AdamW, a checkpoint per epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.backbones import backbone_of
from scale.progress import Bar
from train.network.batches import TrainingData, training_batches
from train.network.checkpoint import Checkpoint
from train.network.config import TrainingConfig
from train.network.known_images import as_input_errors
from train.network.model import augmented, input_names, unfreeze, with_groups, with_source
from utils import InputError, log

WARM_UP = 0.1  # share of the steps
#: A mean loss that moves by no more than this share of itself, times the number of steps, is constant: that is rounding.
LOSS_ROUNDING = 1e-7
UNSTABLE = (
    "the reason may be a learning rate that is too high, --precision mixed_float16, or labels or tabular logits that are no "
    "numbers; change it and give --restart"
)


@dataclass(frozen=True)
class Phase:
    """A part of a training with its own trainable stages and learning rate: the epochs from ``first`` to ``last`` - 1."""

    name: str
    unfreeze: str
    first: int
    last: int
    learning_rate: float


def phases_of(config: TrainingConfig) -> list[Phase]:
    """First the head alone, with the backbone frozen, then the chosen stages with it."""
    head, last = config.head_epochs, config.head_epochs + config.epochs
    if config.unfreeze == "none":
        return [Phase("head", "none", 0, last, config.head_learning_rate)]
    stages = Phase("stages", config.unfreeze, head, last, config.learning_rate)
    return [Phase("head", "none", 0, head, config.head_learning_rate), stages] if head else [stages]


@dataclass(frozen=True)
class Plan:
    """How a network is fitted, besides the rows that it is trained on.

    Args:
        name: heads the progress bar.
        phases: one after another.
        loss: from labels and logits, as Keras takes it.
        config: of the training; the phases and the loss are made from it.
    """

    name: str
    phases: Sequence[Phase]
    loss: Callable
    config: TrainingConfig


def fit(
    network, data: TrainingData, plan: Plan, checkpoint: Checkpoint | None = None, logs: Path | None = None
) -> list[dict]:
    """Fits a network for a fixed number of epochs; nothing is chosen on any row, the last weights stay.

    Args:
        network: of ``train.network.model.starting_network``; trained in place.
        data: rows of all epochs.
        plan: phases and all that is the same in them.
        checkpoint: written after each epoch, and read where an interrupted training continues.
        logs: folder for TensorBoard.

    Returns:
        One record per epoch: "phase", "epoch", "loss", "learning_rate", "seconds", "images_per_second".

    Raises:
        InputError: an image cannot be read any more, or is another; as ``refuse_idle``. The last checkpoint stays.
    """

    checkpoint = checkpoint or Checkpoint(None)
    done, total = checkpoint.epochs, plan.phases[-1].last
    outer = outer_layers(network, data)
    with Bar(total=data.steps * total, initial=data.steps * done, desc=plan.name, unit="step") as bar:
        for phase in plan.phases:
            if done > phase.last:
                continue
            model = compiled_model(network, data, plan, phase, outer)
            start = max(phase.first, done)
            if phase.first < done:
                checkpoint.load(model)
            callbacks = [each_epoch(network, data, plan, phase, bar, checkpoint)]
            if logs:
                callbacks.append(tensorboard(logs))
            with as_input_errors(data.images):
                model.fit(
                    batches_for(model, data, start),
                    initial_epoch=start,
                    epochs=phase.last,
                    steps_per_epoch=data.steps,
                    callbacks=callbacks,
                    verbose=0,
                )
            done = phase.last
    return checkpoint.history


def outer_layers(network, data: TrainingData) -> dict[str, Any]:
    """The layers outside of ``network`` that ``data`` needs, the same in all phases; their weights are zeros.

    Returns:
        "groups": ``head`` of ``with_groups``, for diagnosis groups; "archive": ``offset`` of ``with_source``.
    """
    import keras

    zeros: dict[str, Any] = {"kernel_initializer": "zeros", "dtype": "float32"}
    outer = {}
    with network.distribute_strategy.scope():
        if data.groups:
            outer["groups"] = keras.layers.Dense(data.groups, name="diagnosis_groups", **zeros)
        if "archive" in data.inputs:
            outer["archive"] = keras.layers.Dense(1 + data.groups, use_bias=False, name="archive_offset", **zeros)
    return outer


def compiled_model(network, data: TrainingData, plan: Plan, phase: Phase, outer: Mapping[str, Any] | None = None):
    """The model that is fitted in a phase: ``network``, with its ``outer_layers``, behind its augmentation, compiled."""
    strategy = network.distribute_strategy
    with strategy.scope():
        config = plan.config
        unfreeze(network, phase.unfreeze, config.from_scratch, config.batch_norm, strategy.num_replicas_in_sync)
        outer = outer or {}
        model = augmented(with_groups(network, outer["groups"]) if "groups" in outer else network, config.augmentation)
        if "archive" in outer:
            model = with_source(model, outer["archive"])
        backbone = backbone_of(network)
        slow = backbone.trainable_variables if backbone and config.backbone_rate != 1 else []
        optimizer = adamw(data.steps * (phase.last - phase.first), phase.learning_rate, config, slow)
        optimizer.build(model.trainable_variables)  # made in the first step, it would have that step traced twice
        model.compile(optimizer=optimizer, loss=plan.loss, jit_compile=False)
    return model


def batches_for(model, data: TrainingData, first_epoch: int):
    """``training_batches`` with the inputs that the model has."""
    names = input_names(model)
    batches = training_batches(data, first_epoch)
    return batches.map(lambda inputs, *rest: ({name: inputs[name] for name in names}, *rest))


def each_epoch(network, data: TrainingData, plan: Plan, phase: Phase, bar: Bar, checkpoint: Checkpoint):
    """A Keras callback: moves the bar, checks each epoch, and saves a checkpoint after it."""
    import keras

    class EachEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.started, self.losses = time.monotonic(), []
            seed_dropout(network, plan.config.seed, epoch)

        def on_train_batch_end(self, batch, logs=None):
            self.losses.append(float(logs["loss"]))
            bar.update()

        def on_epoch_end(self, epoch, logs=None):
            seconds = time.monotonic() - self.started
            data.images.refuse_changes()
            before = [record["loss"] for record in checkpoint.history[-1:] if record["phase"] == phase.name]
            refuse_idle(f"{plan.name}, epoch {epoch + 1}", data.steps, self.losses, before)
            if not all(np.isfinite(weight).all() for weight in network.get_weights()):
                raise InputError(f"{plan.name}, epoch {epoch + 1}: weights are not finite; {UNSTABLE}.")
            record = {
                "phase": phase.name,
                "epoch": epoch + 1,
                "loss": float(logs["loss"]),
                "learning_rate": float(self.model.optimizer.learning_rate),
                "seconds": round(seconds, 3),
                "images_per_second": round(data.steps * data.batch_size / seconds, 1),
            }
            checkpoint.save(self.model, record)
            bar.set_postfix(loss=f"{record['loss']:.4f}")

    return EachEpoch()


def seed_dropout(network, seed: int, epoch: int) -> None:
    """Has dropout, which counts its draws, draw the same in ``epoch`` whether or not the training was interrupted before.

    The layers of a backbone drop whole blocks (Huang et al. 2016, Stochastic Depth), each by its own draws.
    """
    backbone = backbone_of(network)
    for number, layer in [*((0, layer) for layer in network.layers), *enumerate(backbone.layers if backbone else (), 1)]:
        if hasattr(layer, "seed_generator"):
            layer.seed_generator.state.assign([(seed + number) % (1 << 32), epoch << 16])


def tensorboard(folder: Path):
    """Keras's callback for TensorBoard; where it cannot write, it says so once, and the training goes on without it."""
    import keras
    import tensorflow as tf

    class Optional(keras.callbacks.TensorBoard):
        lost = False

    def optional(hook):
        def call(self, *arguments, **named):
            if self.lost:
                return
            try:
                hook(self, *arguments, **named)
            except (OSError, tf.errors.OpError) as error:
                self.lost, text = True, str(error).rpartition("}} ")[2].strip()  # without TensorFlow's function
                log(f"{folder} cannot be written ({text}); the training goes on without TensorBoard")

        return call

    for name in ("set_model", "on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end"):
        setattr(Optional, name, optional(getattr(Optional, name)))
    return Optional(folder, write_graph=False)


def refuse_idle(where: str, steps: int, losses: Sequence[float], before: Sequence[float] = ()) -> None:
    """Refuses an epoch in which a network has learned nothing.

    Args:
        where: the network and its epoch.
        steps: that an epoch has.
        losses: after each step of the epoch, the mean so far.
        before: the losses of epochs before it.

    Raises:
        InputError: steps are missing; the loss is not finite, or zero, or the same in three steps or more.
    """
    if len(losses) < steps:
        raise InputError(
            f"{where}: the images ended after {len(losses)} of {steps} steps; check the image file and run again."
        )
    last, seen = losses[-1], [*before, *losses]
    if not math.isfinite(last):
        raise InputError(f"{where}: the loss is {last}; {UNSTABLE}.")
    if last == 0 or (len(seen) > 2 and max(seen) - min(seen) <= LOSS_ROUNDING * len(seen) * abs(last)):
        reasons = "images that are all the same, weights that are broken, or a learning rate that is too low"
        raise InputError(
            f"{where}: the loss is {last:g} in every step; the reason may be {reasons}. Change it and give --restart."
        )


def corrected_loss(prior_correction: float, label_smoothing: float = 0.0, gamma: float = 0.0):
    """Binary cross-entropy of logits to which the prior correction of ``train.network.sampling`` is added.

    Args:
        prior_correction: in logits.
        label_smoothing: labels 0 and 1 become label_smoothing / 2 and 1 - label_smoothing / 2.
        gamma: above 0, the focal loss's exponent (Lin et al. 2017): each term is multiplied by (1 - p of its label)^gamma.
    """
    import keras

    def loss(y_true, logits):
        y_true = y_true * (1.0 - label_smoothing) + label_smoothing / 2.0
        if gamma:
            return keras.losses.binary_focal_crossentropy(y_true, logits + prior_correction, gamma=gamma, from_logits=True)
        return keras.losses.binary_crossentropy(y_true, logits + prior_correction, from_logits=True)

    return loss


def with_group_loss(loss: Callable, weight: float) -> Callable:
    """``loss`` of the first column, and ``weight`` times the cross-entropy of the softmax of the other columns.

    A row whose other targets are all 0 is of an unknown group: it has no part in the second term. Targets that mixup made
    of a known and an unknown group have the known one's share of it.
    """
    import keras

    def both(y_true, logits):
        groups = -keras.ops.sum(y_true[:, 1:] * keras.ops.log_softmax(logits[:, 1:]), axis=-1)
        return loss(y_true[:, :1], logits[:, :1]) + weight * groups

    return both


def adamw(steps: int, learning_rate: float, config: TrainingConfig, slow: Sequence = ()):
    """AdamW whose learning rate warms up over a tenth of the steps and then decays to zero along a cosine.

    Args:
        steps: of the phase.
        learning_rate: its peak.
        config: weight decay, clipping of the gradients' norm, and momentum of the weights' moving average, which replaces
            them at the end.
        slow: variables whose learning rate is ``config.backbone_rate`` of the others'.
    """
    import keras

    slow_paths = {variable.path for variable in slow}

    class AdamW(keras.optimizers.AdamW):
        def update_step(self, gradient, variable, learning_rate):
            path = self._trainable_variables[self._get_variable_index(variable)].path
            rate = learning_rate * config.backbone_rate if path in slow_paths else learning_rate
            super().update_step(gradient, variable, rate)

    warm_up = round(WARM_UP * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 100, max(1, steps - warm_up), warmup_target=learning_rate, warmup_steps=warm_up
    )
    average = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
    clip = {"global_clipnorm": config.clip_norm} if config.clip_norm else {}
    kind = AdamW if slow else keras.optimizers.AdamW
    return kind(schedule, weight_decay=config.weight_decay, **average, **clip)
