"""The Larq side of ``networks.py``: runs in its own environment (``larq_environment.sh`` makes it), one process a network.

    python larq_worker.py NETWORK THREADS

It builds the Keras twin of a network of ``models.py``, converts it with Larq Compute Engine, and says ``ready`` and the size
of the file on a line. Then each line with a number n on stdin is answered by a line of n times in microseconds.
"""

from __future__ import annotations

import os
import sys
import time

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import larq as lq
import larq_compute_engine as lce
import numpy as np
import tensorflow as tf
from larq_compute_engine.tflite.python.interpreter import Interpreter

layers = tf.keras.layers

REACTNET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def binary(x, filters, kernel=3, stride=1, ones=False, **more):
    """Signs on signs. ``ones``: padded with +1, which Larq can keep packed; else with zeros."""
    return lq.layers.QuantConv2D(
        filters, kernel, strides=stride, padding="same", pad_values=1.0 if ones else 0.0, use_bias=False,
        input_quantizer="ste_sign", kernel_quantizer="ste_sign", **more,
    )(x)  # fmt: skip


def norm(x):
    return layers.BatchNormalization(
        beta_initializer=tf.keras.initializers.RandomNormal(0, 0.3, 1),
        moving_mean_initializer=tf.keras.initializers.RandomNormal(0, 0.5, 2),
    )(x)


class Shift(layers.Layer):
    """A number added to each channel."""

    def build(self, shape):
        self.shift = self.add_weight("shift", (shape[-1],), initializer=tf.keras.initializers.RandomNormal(0, 0.1, 3))

    def call(self, x):
        return x + self.shift


def shifted_prelu(x):
    slope = tf.keras.initializers.Constant(0.25)
    return Shift()(layers.PReLU(alpha_initializer=slope, shared_axes=[1, 2])(Shift()(x)))


def head(x):
    return layers.Dense(1000)(layers.GlobalAveragePooling2D()(x))


def bireal18(image):
    x = norm(layers.Conv2D(64, 7, strides=2, padding="same", use_bias=False)(image))
    x = layers.MaxPool2D(3, strides=2, padding="same")(x)
    for width in (64, 128, 256, 512):
        for index in range(4):
            stride = 2 if width != x.shape[-1] and not index else 1
            shortcut = x
            if stride == 2:
                shortcut = norm(layers.Conv2D(width, 1, use_bias=False)(layers.AveragePooling2D(2)(x)))
            x = layers.add([norm(binary(x, width, stride=stride)), shortcut])
    return head(x)


def reactnet(image):
    x = norm(layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False)(image))
    for width, stride in REACTNET:
        channels = x.shape[-1]
        shortcut = x if stride == 1 else layers.AveragePooling2D(2)(x)
        x = shifted_prelu(layers.add([norm(binary(Shift()(x), channels, stride=stride)), shortcut]))
        parts = [layers.add([norm(binary(Shift()(x), channels, kernel=1)), x]) for _ in range(width // channels)]
        x = shifted_prelu(parts[0] if len(parts) == 1 else layers.concatenate(parts))
    return head(x)


def quicknet(image, units=(4, 4, 4, 4)):
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU()(norm(x))
    x = norm(layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(x))
    x = norm(layers.Conv2D(64, 1, use_bias=False)(x))
    for section, (count, width) in enumerate(zip(units, (64, 128, 256, 512))):  # noqa: B905
        if section:
            x = layers.MaxPool2D(2, strides=1, padding="same")(layers.ReLU()(x))
            x = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(x)
            x = norm(layers.Conv2D(width, 1, use_bias=False)(x))
        for _ in range(count):
            x = layers.add([norm(binary(x, width, ones=True, activation="relu")), x])
    return head(layers.ReLU()(x))


NETWORKS = {
    "bireal18": bireal18,
    "reactnet": reactnet,
    "quicknet": quicknet,
    "quicknet_large": lambda image: quicknet(image, (6, 8, 12, 6)),
}


def main() -> None:
    name, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    tf.random.set_seed(0)
    image = tf.keras.Input((224, 224, 3), batch_size=1)
    model = tf.keras.Model(image, NETWORKS[name](image))
    flatbuffer = lce.convert_keras_model(model)
    interpreter = Interpreter(flatbuffer, num_threads=threads)
    sample = np.random.default_rng(0).standard_normal((1, 224, 224, 3), np.float32)
    interpreter.predict(sample)
    run = interpreter.interpreter  # the bare one: ``predict`` of the other prepares its inputs anew
    print("ready", len(flatbuffer), file=answers, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run.predict([sample])
            times.append((time.perf_counter() - start) * 1e6)
        print(*(f"{found:.2f}" for found in times), file=answers, flush=True)


if __name__ == "__main__":
    main()
