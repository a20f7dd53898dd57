"""Shows how to load the networks and the queries of the benchmark: iterate_samples.py --dataset
mnist|fashion-mnist.

Prints one line for each published query, in the order of the test set: what another method has to
decide. A network maps uint8 pixels [S, 784] to integers [S, 32]; ``networks/*.onnx`` computes the
same in any ONNX runtime.
"""

from __future__ import annotations

import argparse

from samples import DATASETS, Benchmark, published


def main() -> None:
    parser = argparse.ArgumentParser(description="the published queries of a data set")
    parser.add_argument("--dataset", choices=DATASETS, default="mnist")
    benchmark = Benchmark.of(parser.parse_args().dataset)
    wrong = 0
    for query in published(benchmark.dataset):
        image, label = benchmark.samples.sample(query.sample_id)
        predicted = benchmark.predicted(image)
        wrong += predicted != label
        note = "" if predicted == label else f", misclassified as {predicted}"
        print(
            f"sample {query.sample_id}: eps {query.eps}, label {label}{note}; published: "
            f"{query.published}"
        )
    print(
        f"{benchmark.dataset}: {len(published(benchmark.dataset))} samples, {wrong} misclassified"
    )


if __name__ == "__main__":
    main()
