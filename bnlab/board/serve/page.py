"""TensorBoard's process and page: `python -c PROGRAM LOOK FLAGS...`, LOOK being the JSON of a `Look`.

TensorBoard takes the files of its page from whoever starts it. This program gives it its own ones, with a few places of
index.js changed: what no address and no event file can set (docs/decisions/015). A place that a later version no longer
has is left as it is: the page then looks as TensorBoard's does.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bnlab.board.tags import ASIDE

PROGRAM = f"from {__name__} import main; main()"

NAMED = r"(?:^|/)([^/]+)/(lr=[^/]+)"
"""In the name of a run: its norm or arm, and its learning rate."""

SETTINGS = {"timeSeriesSettingsPaneOpened": False}
"""What the Time Series page keeps in the browser's local storage, where the user has not set it otherwise."""

HELPERS = """globalThis.bnlab={
  look:LOOK,
  colour(run){
    const [, arm, rate]=/NAMED/.exec(run)??[];
    return this.look.colours[arm+"/"+rate]??this.look.colours[arm];
  },
  listed(runs,selector){
    return selector.getRootNode().host?.localName==="tf-custom-scalar-dashboard"?runs.filter(run=>run!=="ASIDE"):runs;
  },
  log(title){return this.look.log!==""&&new RegExp(this.look.log).test(title)}
};
{const key="_tb_global_settings",kept=JSON.parse(localStorage.getItem(key)??"{}");
localStorage.setItem(key,JSON.stringify({...SETTINGS,...kept}))}
"""

CHANGES = {
    # The older pages, Custom Scalars among them, colour runs by their place in the list.
    r"this\.identifiers\.set\((\w+),(this\.palette\[\w+%this\.palette\.length\])\)": (
        r"this.identifiers.set(\1,bnlab.colour(\1)??\2)"
    ),
    # Time Series, its histograms included, colours them by the place of their group.
    r"if\((\w+)\.has\((\w+)\)\)(\w+)=\1\.get\(\2\);else if\((?=\w+>=0\)\{let)": (
        r"if(\1.has(\2))\3=\1.get(\2);else if(bnlab.colour(\2))\3=bnlab.colour(\2);else if("
    ),
    # Cards of Time Series open with a logarithmic axis where the look says so, and keep what is clicked then.
    r"this\.yScaleType=\w+\.LINEAR,(?=this\.isViewBoxOverridden=!1,this\.additionalItemsCount)": "",
    r"toggleYScaleType\(\)\{(?=this\.yScaleType=this\.yScaleType===(\w+)\.LINEAR)": (
        r"get yScaleType(){return this._chosenAxis??(bnlab.log(this.tag)?\1.LOG10:\1.LINEAR)}"
        r"set yScaleType(axis){this._chosenAxis=axis}toggleYScaleType(){"
    ),
    # So do charts of Custom Scalars.
    r"get _titleDisplayString\(\)\{var (\w+)=this\.title;": (
        r"get _titleDisplayString(){var \1=this.title;\1&&(this._logScaleActive??=bnlab.log(\1));"
    ),
    # Custom Scalars lists no run that has no series.
    r'this\.set\("runs",(\w+\.getRuns\(\))\)': r'this.set("runs",bnlab.listed(\1,this))',
    # Images have their own size instead of a width of 350 pixels, up to the width of the page.
    r"this\.reloadOnReady=!0,(?=this\._defaultBrightnessAdjustment)": "this._actualSize=!0,this.reloadOnReady=!0,",
    r"(:host\(\[actual-size\]\) #main-image-container img \{\s+width: auto;)": r"\1max-width:100%;",
}
"""Pattern -> replacement, in index.js."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How pages begin: colours of arms, or of their lines as `arm/lr=0.1`, and a regular expression of the tags and
    charts whose axis is logarithmic."""

    colours: Mapping[str, str] = field(default_factory=dict)
    log: str = ""

    def json(self) -> str:
        return json.dumps(asdict(self))


PLAIN = Look()


def changed(script: str, look: str) -> str:
    """index.js with what a look needs."""
    for pattern, replacement in CHANGES.items():
        script = re.sub(pattern, replacement, script)
    named = NAMED.replace("/", r"\/")
    values = {"NAMED": named, "ASIDE": ASIDE, "SETTINGS": json.dumps(SETTINGS), "LOOK": look}
    return re.sub("|".join(values), lambda found: values[found[0]], HELPERS) + script


def files(original: Path, look: str) -> io.BytesIO:
    """TensorBoard's zip of assets, changed. The script gets an address of its own, since browsers keep it."""
    made = io.BytesIO()
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(made, "w") as new:
        script = changed(old.read("index.js").decode(), look).encode()
        named = f"index.js?_file_hash={hashlib.sha256(script).hexdigest()[:16]}".encode()
        for name in old.namelist():
            content = script if name == "index.js" else old.read(name)
            if name == "index.html":
                content = re.sub(rb"index\.js\?_file_hash=\w+", named, content)
            new.writestr(name, content)
    made.seek(0)
    return made


def end_with_parent() -> None:
    """stdin ends with the process that started this one, also after a SIGKILL: the system then closes its other end."""
    while os.read(0, 1):
        pass
    os._exit(0)


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    from tensorboard import assets
    from tensorboard.main import run_main

    look, original = sys.argv.pop(1), Path(assets.__file__).with_name("webfiles.zip")
    assets.get_default_assets_zip_provider = lambda: lambda: files(original, look)
    run_main()
