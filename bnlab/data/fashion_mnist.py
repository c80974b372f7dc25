"""Fashion-MNIST: 70,000 grey 28x28 images of clothes in 10 classes (Xiao, Rasul & Vollgraf 2017)."""

from __future__ import annotations

from bnlab.core.registry import DATA
from bnlab.data import _stored
from bnlab.data.base import Dataset
from bnlab.files.sources import SOURCES, Source

SOURCES["fashion_mnist"] = Source(
    name="fashion_mnist",
    files=_stored.idx_files(
        (47_040_016, 60_008, 7_840_016, 10_008),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    folders=("fashion_mnist", "FashionMNIST/raw"),
    urls=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
    ),
)


@DATA.register("fashion_mnist")
def fashion_mnist() -> Dataset:
    """x [N, 1, 28, 28] with grey values 0 to 1, 60,000 for training and 10,000 for the test; y the kind of clothing."""
    return _stored.load(SOURCES["fashion_mnist"], _stored.decode_idx, classes=10)
