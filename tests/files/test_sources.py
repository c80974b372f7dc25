"""Files of data sets: found where people keep them, taken when their content is right, refused by name when not."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bnlab.core.errors import DataError
from bnlab.data import cifar10 as cifar10_module
from bnlab.files.sources import SOURCES, DamagedError, Source, contents, decoded, missing, present, read, roots

Tiny = Callable[..., dict[str, bytes]]


def _put(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return folder


def _tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, member in members.items():
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(member)
            archive.addfile(info, io.BytesIO(member))
    return path


def _in_folder(files: dict[str, bytes]) -> dict[str, bytes | tarfile.TarInfo]:
    return {f"cifar-10-batches-bin/{name}": data for name, data in files.items()}


# -- what is known of the real ones ----------------------------------------------------------------


def test_the_published_files_have_their_formats_sizes(published: dict[str, Source]) -> None:
    assert sorted(published) == ["cifar10", "fashion_mnist", "mnist"]
    for name in ("mnist", "fashion_mnist"):
        sizes = {file.name: file.size for file in published[name].files}
        assert sizes == {
            "train-images-idx3-ubyte": 16 + 60000 * 28 * 28,
            "train-labels-idx1-ubyte": 8 + 60000,
            "t10k-images-idx3-ubyte": 16 + 10000 * 28 * 28,
            "t10k-labels-idx1-ubyte": 8 + 10000,
        }
    assert {file.size for file in published["cifar10"].files} == {10000 * (1 + 3 * 32 * 32)}
    assert len(published["cifar10"].files) == 6
    digests = [file.sha256 for source in published.values() for file in source.files]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert len(set(digests)) == 14
    assert all(url.startswith("http") and not url.endswith("/") for s in published.values() for url in s.urls)
    assert all(len(source.urls) >= 2 for source in published.values())


# -- where they are looked for ---------------------------------------------------------------------


def test_data_is_looked_for_in_bnlab_data_then_in_the_user_s_cache_then_in_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BNLAB_DATA", str(tmp_path / "mine"))
    assert roots() == [tmp_path / "mine", tmp_path / "cache" / "bnlab" / "data", Path("data")]
    monkeypatch.setenv("BNLAB_DATA", "")
    assert roots() == [tmp_path / "cache" / "bnlab" / "data", Path("data")]
    monkeypatch.setenv("BNLAB_DATA", "~/sets")
    assert roots()[0] == Path.home() / "sets"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar10/cifar-10-batches-bin"),
        ("cifar10", "cifar-10-batches-bin"),
        ("cifar10", "cifar10"),
    ],
)
def test_files_are_found_plain_and_packed_in_every_layout(
    name: str, folder: str, packed: bool, tiny: Tiny, tmp_path: Path
) -> None:
    _put(tmp_path / folder, tiny(name), packed=packed)
    assert read(SOURCES[name], [tmp_path / "nothing", tmp_path]) == tiny(name)


@pytest.mark.parametrize("level", [1, 9])
def test_a_file_compressed_again_is_the_same_file(level: int, tiny: Tiny, tmp_path: Path) -> None:
    folder = _put(tmp_path / "mnist", tiny("mnist"))
    plain = folder / "train-images-idx3-ubyte"
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(plain.read_bytes(), level, mtime=7))
    plain.unlink()
    assert read(SOURCES["mnist"], [tmp_path]) == tiny("mnist")


@pytest.mark.parametrize("folder", ["cifar10", "."])
@pytest.mark.parametrize("mode", ["w:gz", "w", "w:xz"])
def test_an_archive_is_read_without_being_unpacked(folder: str, mode: str, tiny: Tiny, tmp_path: Path) -> None:
    extra = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n", "readme.html": b"<html>"}
    _tar(tmp_path / folder / "cifar-10-binary.tar.gz", extra | _in_folder(tiny("cifar10")), mode)
    before = sorted(tmp_path.rglob("*"))
    assert read(SOURCES["cifar10"], [tmp_path]) == tiny("cifar10")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sound_copy_further_down_is_taken_where_the_first_is_damaged(tiny: Tiny, tmp_path: Path) -> None:
    bad = _put(tmp_path / "one" / "mnist", tiny("mnist"))
    (bad / "train-labels-idx1-ubyte").write_bytes(b"nonsense")
    _put(tmp_path / "two" / "MNIST" / "raw", tiny("mnist"))
    assert read(SOURCES["mnist"], [tmp_path / "one", tmp_path / "two"]) == tiny("mnist")


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda data: data[:-5], "is cut off after [0-9,]+ of [0-9,]+ bytes"),
        (lambda data: data[:0] + b"\0\0\x08\x03", "is cut off after 4 of"),
        (lambda data: data + b"\0", "is longer than its [0-9,]+ bytes"),
        (lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:], "its checksum is wrong"),
        (lambda data: b"\0\0\x0d\x03" + data[4:], r"is another kind of file: it begins with b'\\x00\\x00\\r\\x03"),
        (lambda data: b"<!DOCTYPE html><p>Sorry</p>", "is another kind of file: it begins with b'<!DOCTYP'"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_by_name(
    packed: bool, spoil: Callable[[bytes], bytes], problem: str, tiny: Tiny, tmp_path: Path
) -> None:
    files = tiny("mnist")
    files["t10k-images-idx3-ubyte"] = spoil(files["t10k-images-idx3-ubyte"])
    folder = _put(tmp_path / "mnist", files, packed=packed)
    path = folder / ("t10k-images-idx3-ubyte.gz" if packed else "t10k-images-idx3-ubyte")
    with pytest.raises(DamagedError, match=problem) as refused:
        read(SOURCES["mnist"], [tmp_path])
    first, second = refused.value.lines
    assert first.startswith(f"data=mnist: {path} ")
    assert second == "Remove it, and get an intact one: bnlab data fetch mnist, or ... --from DIR."


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4],
        lambda data: data[:1000] + bytes(100) + data[1100:],
        lambda data: data[:12],
    ],
)
def test_a_damaged_gzip_file_is_refused_by_name(spoil: Callable[[bytes], bytes], tiny: Tiny, tmp_path: Path) -> None:
    folder = _put(tmp_path / "mnist", tiny("mnist"), packed=True)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil(path.read_bytes()))
    problem = r"(cannot be unpacked \(.+\)|is cut off after .+ bytes|.+checksum is wrong)"
    with pytest.raises(DamagedError, match=rf"^data=mnist: {re.escape(str(path))} {problem}"):
        read(SOURCES["mnist"], [tmp_path])


def test_a_file_that_unpacks_without_end_is_not_unpacked_to_its_end(tiny: Tiny, tmp_path: Path) -> None:
    folder = _put(tmp_path / "mnist", tiny("mnist"))
    head = tiny("mnist")["train-images-idx3-ubyte"]
    bomb = gzip.compress(head, 1) + gzip.compress(bytes(2**26), 9) * 64  # 4 GiB in 4 MB
    (folder / "train-images-idx3-ubyte").write_bytes(bomb)
    with pytest.raises(DamagedError, match="is longer than its 156,816 bytes"):
        read(SOURCES["mnist"], [tmp_path])


def _link(name: str, to: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize(
    "evil",
    [
        {"../outside.txt": b"x"},
        {"cifar-10-batches-bin/../../outside.txt": b"x"},
        {"/tmp/outside.txt": b"x"},
        {"cifar-10-batches-bin/link": _link("cifar-10-batches-bin/link", "/etc/passwd", tarfile.SYMTYPE)},
        {"data_batch_1.bin": _link("data_batch_1.bin", "../../x", tarfile.LNKTYPE)},
        {"pipe": _link("pipe", "", tarfile.FIFOTYPE)},
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_an_archive_that_leads_out_of_itself_is_refused(
    evil: dict[str, bytes | tarfile.TarInfo], first: bool, tiny: Tiny, tmp_path: Path
) -> None:
    good = _in_folder(tiny("cifar10"))
    path = _tar(tmp_path / "a" / "cifar-10-binary.tar.gz", evil | good if first else good | evil)
    with pytest.raises(DamagedError, match=r"holds '.+', a link or a path that leads out of it"):
        read(SOURCES["cifar10"], [path.parent])
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", path]


def test_a_damaged_archive_is_refused_by_name(tiny: Tiny, tmp_path: Path) -> None:
    members = _in_folder(tiny("cifar10"))
    path = tmp_path / "cifar-10-binary.tar.gz"

    def refused(problem: str) -> None:
        with pytest.raises(DamagedError, match=rf"^data=cifar10: {re.escape(str(path))}.*{problem}"):
            read(SOURCES["cifar10"], [tmp_path])

    _tar(path, members)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(r"cannot be unpacked \(.*end")
    path.write_bytes(b"no archive at all")
    refused("cannot be unpacked")
    _tar(path, {name: data for name, data in members.items() if "batch_3" not in name})
    refused(r"lacks data_batch_3\.bin")
    _tar(path, members | {"cifar-10-batches-bin/test_batch.bin": bytes(40 * 3073)})
    refused("test_batch.bin .*its checksum is wrong")
    _tar(path, members | {"cifar-10-batches-bin/more": bytes(2 * 6 * 40 * 3073)})
    refused("holds far more than it should")


def test_a_folder_in_the_place_of_a_file_is_not_taken_for_one(tiny: Tiny, tmp_path: Path) -> None:
    files = tiny("mnist")
    del files["train-images-idx3-ubyte"]
    (_put(tmp_path / "mnist", files) / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(DataError, match="no train-images-idx3-ubyte "):
        read(SOURCES["mnist"], [tmp_path])


# -- what is missing -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_two_lines_say_what_is_missing_where_it_was_looked_for_and_both_ways_to_get_it(
    name: str, tmp_path: Path
) -> None:
    source = SOURCES[name]
    with pytest.raises(DataError, match=rf"^data={name}: no ") as raised:
        read(source, [tmp_path / "a", tmp_path / "b"])
    first, second = raised.value.lines
    assert all(file.name in first for file in source.files)
    assert all(str(tmp_path / root / folder) in first for root in "ab" for folder in source.folders)
    assert f"bnlab data fetch {name}." in second
    assert f"bnlab data fetch {name} --from DIR" in second
    assert "BNLAB_DATA" in second
    assert "\n" not in first + second


def test_only_what_is_missing_is_called_missing(tiny: Tiny, tmp_path: Path) -> None:
    files = tiny("mnist")
    del files["t10k-labels-idx1-ubyte"]
    _put(tmp_path / "mnist", files)
    with pytest.raises(DataError, match=r"^data=mnist: no t10k-labels-idx1-ubyte \(plain or \.gz\); looked in "):
        read(SOURCES["mnist"], [tmp_path])


def test_pickles_are_named_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    text = str(missing(SOURCES["cifar10"], [tmp_path]))
    assert f"{tmp_path / 'cifar-10-batches-py'} is not read: pickles can run code" in text
    assert "pickle" not in Path(cifar10_module.__file__).read_text()


def test_what_is_there_in_files_or_decoded_need_not_be_fetched(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BNLAB_DATA", str(tmp_path))
    assert not present(SOURCES["mnist"])
    _put(tmp_path / "mnist", tiny("mnist"))
    assert present(SOURCES["mnist"])
    assert not present(SOURCES["cifar10"])
    home = decoded(SOURCES["cifar10"])[0]
    home.mkdir(parents=True)
    (home / "sums.npy").touch()
    assert present(SOURCES["cifar10"])


def test_a_missing_file_in_a_named_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"train-images-idx3-ubyte cannot be read \(No such file"):
        contents(SOURCES["mnist"], tmp_path)
