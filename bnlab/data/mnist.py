"""MNIST: 70,000 grey 28x28 images of handwritten digits in 10 classes (LeCun, Bottou, Bengio & Haffner 1998)."""

from __future__ import annotations

from bnlab.core.registry import DATA
from bnlab.data import _stored
from bnlab.data.base import Dataset
from bnlab.files.sources import SOURCES, Source

SOURCES["mnist"] = Source(
    name="mnist",
    files=_stored.idx_files(
        (47_040_016, 60_008, 7_840_016, 10_008),
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    folders=("mnist", "MNIST/raw"),
    urls=("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
)


@DATA.register("mnist")
def mnist() -> Dataset:
    """x [N, 1, 28, 28] with grey values 0 to 1, 60,000 for training and 10,000 for the test; y the digit."""
    return _stored.load(SOURCES["mnist"], _stored.decode_idx, classes=10)
