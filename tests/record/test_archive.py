"""Archives of run folders: they arrive as they were sent, and one that has anything else is refused as a whole."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from bnlab.core.errors import UsageError
from bnlab.record import archive
from bnlab.record.folder import RunFolder

FILES = {
    "spec.yaml": b"seed: 0\n",
    "plugins/0/my norm.py": b"x = 1\n",
    "plugins/0/beside/helper.py": b"",
    "log.txt": b"a\n",
    "journal.jsonl": b'{"step": 0}\n',
    "checkpoint.pt": b"\x80",
    "events.out.tfevents.1.host.2.full": b"\x00",
    "status.json": b'{"status": "interrupted"}',
}
NOT_SENT = ("lock", "owner.json", "notes.txt", ".checkpoint.pt.12", "plots/a.png")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in (*FILES, *NOT_SENT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(FILES.get(name, b"-"))
    return folder


def test_the_files_of_a_run_arrive_as_they_were(run: Path, tmp_path: Path) -> None:
    """And no others: not its lock, not what a user has put there."""
    (run / "answers.jsonl").symlink_to("/etc/hostname")
    sent = archive.content([tmp_path / "no run yet", run])
    assert sent == {f"1/{name}": data for name, data in FILES.items()}
    arrived = archive.unpack(archive.pack(sent), 2)
    assert arrived == sent
    there = [tmp_path / "there" / "0", tmp_path / "there" / "1"]
    archive.put(arrived, (), dict(enumerate(there)))
    assert archive.content(there) == sent
    assert not any(file.name.startswith(".") for file in there[1].rglob("*"))


def test_files_that_are_gone_are_removed_and_other_folders_stay(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    archive.put({"0/log.txt": b"new", "1/log.txt": b"new"}, ["0/checkpoint.pt", "1/checkpoint.pt"], {0: run})
    assert ((run / "log.txt").read_bytes(), (run / "checkpoint.pt").exists()) == (b"new", False)
    assert list(other.iterdir()) == []


def test_the_status_comes_last_and_the_journal_before_its_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(archive, "write_atomically", lambda file, data: written.append(file.name))
    archive.put(archive.content([run]), (), {0: run})
    assert written[0] == "spec.yaml"
    assert written.index("journal.jsonl") < written.index("checkpoint.pt")
    assert written[-1] == "status.json"


def test_answers_are_added_to_those_that_are_there(run: Path) -> None:
    """Another process may have asked the same net meanwhile."""
    folder = RunFolder(run)
    mine, theirs = b'{"a": 1}\n', b'{"a": 2}\n'
    folder.answers_file.write_bytes(theirs)
    for _ in range(2):
        archive.put({"0/answers.jsonl": mine + b'{"torn'}, (), {0: run})
    assert folder.answers_file.read_bytes() == theirs + mine


# -- evil ones ---------------------------------------------------------------------------------------------------------


def tar(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                made.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                made.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(kind: bytes, name: str = "0/log.txt", link: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


NAMES = [
    "/etc/cron.d/evil", "//0/log.txt", "../log.txt", "0/../log.txt", "0/../../1/log.txt", "0/plugins/../../x.py",
    "0/./log.txt", "0//log.txt", "0/", "0", "", "2/log.txt", "-1/log.txt", "٠/log.txt", "x/log.txt", "0/lock",
    "0/owner.json", "0/.bashrc", "0/evil.py", "0/sub/log.txt", "0/plugins", "0/log.txt/x", "0/plugins/0/a\nb.py",
    "0/plugins/0/$HOME", "0\\log.txt", "0/plugins/0/..\\x.py",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_a_runs_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^archive: (cannot be the name of a folder|not the name of a run's file)"):
        archive.accept([name], 2)
    with pytest.raises(UsageError, match=r"^archive: "):
        archive.unpack(tar(("0/journal.jsonl", b"{}"), (name, b"evil")), 2)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE,
     tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE],
)  # fmt: skip
def test_links_devices_pipes_and_folders_are_refused(kind: bytes) -> None:
    with pytest.raises(UsageError, match=r"^archive: "):
        archive.unpack(tar(special(kind)), 1)


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tar(("0/log.txt", b"12345"), ("0/journal.jsonl", b"12345"))
    monkeypatch.setattr(archive, "LIMIT", 10)
    assert len(archive.unpack(data, 1)) == 2
    monkeypatch.setattr(archive, "LIMIT", 9)
    with pytest.raises(UsageError, match=r"or too large, got '0/journal\.jsonl'"):
        archive.unpack(data, 1)


def test_a_size_beyond_the_archive_is_refused() -> None:
    info = tarfile.TarInfo("0/log.txt")
    info.size = 2**33 - 1
    with pytest.raises(UsageError, match=r"^archive: "):
        archive.unpack(info.tobuf() + b"\0" * 1024, 1)


@pytest.mark.parametrize("data", [b"x", b"x" * 600, b"PK\3\4" + b"\0" * 600, tar(("0/log.txt", b"1" * 999))[:700]])
def test_what_is_damaged_or_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"^archive: "):
        archive.unpack(data, 1)


def test_the_same_file_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="the same file twice"):
        archive.unpack(tar(("0/log.txt", b"1"), ("0/log.txt", b"2")), 1)


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    (run / "log.txt").unlink()
    os.symlink(target, run / "log.txt")
    archive.put({"0/log.txt": b"new"}, (), {0: run})
    assert (target.read_bytes(), (run / "log.txt").read_bytes()) == (b"untouched", b"new")
