"""Makes the pictures of pages in docs/images/: what a browser shows of the `quickstart` study and of its report.

    bnlab sweep --config quickstart && python docs/pages.py [runs/quickstart]

Needs the extra [browser], and a Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
LR = "lr=0.0562"
"""The largest of the study's rates at which both nets train with every seed."""
SETTLED_MS = 8_000
"""What charts take to be drawn."""


def main() -> None:
    study = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    path = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as aside:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])

        def picture(address: str, name: str, height: int, *, width: int = 1450, whole: bool = False) -> None:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(address)
            page.wait_for_timeout(SETTLED_MS)
            page.screenshot(path=IMAGES / name, full_page=whole)
            page.close()
            print(IMAGES / name)

        with viewed(str(study), "--filter", f"{LR}/") as link:
            picture(link, "tensorboard.png", 1180)
        with viewed(str(study), "--single") as link:
            picture(link.replace("#timeseries", "#hparams"), "tensorboard_hparams.png", 760)
        with viewed(str(study)) as link:
            picture(link, "tensorboard_compare.png", 1985)
        for norm in ("batch", "none"):
            [run] = (study / norm / LR).glob("seed=12-*")
            shutil.copytree(run, Path(aside) / "quickstart" / norm / LR / run.name)
        with viewed(str(Path(aside) / "quickstart"), "--full") as link:
            base, _, _ = link.partition("?")
            picture(f"{base}?tagFilter=9_hist_pre#timeseries", "tensorboard_histograms.png", 900)
        picture((study / "report.html").resolve().as_uri(), "report.png", 1500, width=1180)
        browser.close()


@contextmanager
def viewed(*words: str) -> Iterator[str]:
    """The link of `bnlab view`, while it serves."""
    command = [sys.executable, "-m", "bnlab", "view", "--no-open", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        link = next(line.strip() for line in process.stdout if line.startswith("http"))
        try:
            yield link
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
