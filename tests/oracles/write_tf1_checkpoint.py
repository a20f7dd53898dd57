"""Build a Robust-Model-Zoo network in TensorFlow's graph mode, save it with its Saver, and write
down its logits.

Run by a Python that has TensorFlow (bitcrown needs none); ``test_tf1_checkpoints.py`` does so, and
``tests/data/zoo/tiny.*`` was made by::

    python tests/oracles/write_tf1_checkpoint.py tiny tests/data/zoo --images 3 --size 8 --seed 7

Nothing of bitcrown is imported: this is a second writing of the same architecture, for comparison.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1
NETWORKS = {
    "model_1": (
        (48, ("",), False),
        (96, ("_0", "_1"), False),
        (192, ("_1",), False),
        (384, ("_0", "_1"), False),
    ),
    "model_2": (
        (48, ("",), False),
        (96, ("_0", "_1", "_2", "_3", "_4"), False),
        (192, ("_4",), False),
        (384, ("_0", "_1", "_2", "_3", "_4"), True),
    ),
    "small": ((8, ("",), False), (16, ("_0",), False), (32, ("_0",), True)),
    "tiny": ((2, ("",), False), (4, ("_0",), True)),
}
"""Per stage: width, suffixes of its groups, whether a group is a residual unit only."""


class Graph:
    """Operations over float32 variables, computed in ``dtype``."""

    def __init__(self, quantized: bool, dtype: tf.DType) -> None:
        self.quantized = quantized
        self.dtype = dtype

    def variable(self, name: str, shape: list[int], initializer) -> tf.Tensor:
        return tf.cast(
            tf1.get_variable(name, shape, tf.float32, initializer=initializer), self.dtype
        )

    def convolution(self, x, name: str, inputs: int, outputs: int, size: int = 3, stride: int = 1):
        draw = tf1.random_normal_initializer(stddev=np.sqrt(2.0 / (size * size * outputs)))
        with tf1.variable_scope(name, reuse=tf1.AUTO_REUSE):
            kernel = self.variable("DW", [size, size, inputs, outputs], draw)
        return tf.nn.conv2d(x, kernel, strides=stride, padding="SAME")

    def normalised(self, x):
        channels = int(x.shape[3])
        with tf1.variable_scope("BN", reuse=tf1.AUTO_REUSE):
            mean, variance = tf.nn.moments(x, axes=[0, 1, 2], keepdims=True)
            x = (x - mean) / tf.sqrt(variance + 1e-9)
            shift = self.variable(
                "DN_Mean", [1, 1, 1, channels], tf1.random_normal_initializer(stddev=0.1)
            )
            scale = self.variable(
                "DN_Variance", [1, 1, 1, channels], tf1.random_uniform_initializer(0.5, 1.5)
            )
            return x * scale + shift

    def swish(self, x):
        return x * tf.sigmoid(x)

    def quantize(self, x):
        if not self.quantized:
            return x
        peak = tf.reduce_max(tf.abs(x))
        scaled = tf.clip_by_value(x / (peak + 1e-9), -1.0, 1.0)
        step = tf.constant(1.0, self.dtype) / tf.constant(10.0, self.dtype)
        grid = tf.round(scaled / step) * step
        return peak * (grid + step * (1.0 / (1.0 + tf.exp(-1e8 * (scaled - grid)))))

    def residual(self, x, name: str, inputs: int, outputs: int, stride: int = 1):
        with tf1.variable_scope(name, reuse=tf1.AUTO_REUSE):
            with tf1.variable_scope("residual_only_activation", reuse=tf1.AUTO_REUSE):
                inner = self.swish(self.normalised(x))
            with tf1.variable_scope("sub1", reuse=tf1.AUTO_REUSE):
                inner = self.convolution(inner, "conv1", inputs, outputs, stride=stride)
            with tf1.variable_scope("sub2", reuse=tf1.AUTO_REUSE):
                inner = self.convolution(
                    self.swish(self.normalised(inner)), "conv2", outputs, outputs
                )
            with tf1.variable_scope("sub_add", reuse=tf1.AUTO_REUSE):
                if stride > 1:
                    x = tf.nn.avg_pool2d(x, stride, stride, "VALID")
                if inputs != outputs:
                    x = self.convolution(x, "conv_1x1", inputs, outputs, size=1)
        return inner + x

    def bottleneck(self, x, name: str, inputs: int, outputs: int):
        widths = (inputs, 2 * inputs, 2 * inputs, inputs, outputs)
        with tf1.variable_scope(name, reuse=tf1.AUTO_REUSE):
            for number in range(1, 5):
                with tf1.variable_scope(f"sub{number}", reuse=tf1.AUTO_REUSE):
                    x = self.convolution(x, f"conv{number}", widths[number - 1], widths[number])
                    x = x if number == 4 else self.swish(x)
        return x

    def network(self, x, stages):
        before = 3
        for index, (width, suffixes, plain) in enumerate(stages):
            entry = narrow = 3 if index == 0 else width
            if index:
                x = self.residual(x, f"stride_{index}", before, width, stride=2)
            for suffix in suffixes:
                name = f"layer_{index + 1}{suffix}"
                x = self.residual(x, f"block_1_{name}_sub_0", entry, width)
                if not plain:
                    x = self.bottleneck(self.quantize(x), f"block_2_{name}", width, narrow)
                    x = self.quantize(self.residual(x, f"block_3_{name}_sub_0", narrow, width))
            before = width
        with tf1.variable_scope("unit_last", reuse=tf1.AUTO_REUSE):
            x = tf.reduce_mean(self.swish(self.normalised(x)), axis=[1, 2])
        with tf1.variable_scope("logit/FC", reuse=tf1.AUTO_REUSE):
            limit = np.sqrt(3.0 / before)
            kernel = self.variable(
                "DW", [before, 10], tf1.random_uniform_initializer(-limit, limit)
            )
            shift = self.variable("biases", [10], tf1.random_normal_initializer(stddev=0.1))
        return tf.matmul(x, kernel) + shift


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    images = np.random.default_rng(chosen.seed).random(
        (chosen.images, chosen.size, chosen.size, 3), dtype=np.float32
    )
    found = {"images": images}
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(chosen.seed)
        logits = {}
        for quantized in (False, True):
            for dtype in (tf.float32, tf.float64):
                graph = Graph(quantized, dtype)
                name = f"{'quantized' if quantized else 'plain'}_{dtype.name}"
                logits[name] = graph.network(tf.constant(images, dtype), NETWORKS[chosen.network])
        session.run(tf1.global_variables_initializer())
        found.update(session.run(logits))
        tf1.train.Saver().save(session, str(chosen.folder / chosen.network), write_meta_graph=False)
    (chosen.folder / "checkpoint").unlink()
    np.savez_compressed(chosen.folder / f"{chosen.network}.logits.npz", **found)


if __name__ == "__main__":
    main()
