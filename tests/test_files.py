"""Replacing a file in one step: what it refuses, what it leaves alone, and what it cleans up."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from frozen_kernels import files


@pytest.mark.parametrize("content", ["sécurité", "sécurité".encode(), lambda file: file.write("sécurité".encode())])
def test_every_kind_of_content(tmp_path, content):
    path = tmp_path / ("n" * 255)  # no room for a longer name beside it
    files.write_whole(path, content)
    assert path.read_bytes() == "sécurité".encode() and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("stage", ["content", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, stage):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    if stage != "content":
        monkeypatch.setattr(os, stage, fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_whole(path, fail if stage == "content" else b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_the_new_file_is_never_more_open_than_the_old_one(tmp_path):
    path, seen = tmp_path / "file", []
    files.write_whole(path, "old")
    path.chmod(0o600)

    def write(file):
        seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        file.write(b"new")

    files.write_whole(path, write)
    assert seen == [0o600] and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_links_are_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link", tmp_path / "folder" / "file"
    link.symlink_to(target)
    for text in ("made", "replaced"):
        files.write_whole(link, text)
        assert link.is_symlink() and target.read_text() == text
    assert os.listdir(target.parent) == ["file"]


def test_a_link_is_replaced_where_that_is_asked(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    monkeypatch.chdir(tmp_path)
    files.write_whole("link", "new", follow=False)
    assert not os.path.islink("link") and (tmp_path / "link").read_text() == "new"
    assert (tmp_path / "file").read_text() == "old" and sorted(os.listdir()) == ["file", "link"]


def test_only_regular_files_are_replaced(tmp_path):
    fifo, server = tmp_path / "fifo", socket.socket(socket.AF_UNIX)
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to(fifo)
    before = os.getcwd()
    os.chdir(tmp_path)  # the path of a socket is short
    try:
        server.bind("socket")
    finally:
        os.chdir(before)
    kinds = {
        os.devnull: "a character device",
        fifo: "a FIFO",
        tmp_path / "link": "a FIFO",
        tmp_path / "socket": "a socket",
    }
    for path, kind in kinds.items():
        mode = os.stat(path).st_mode
        with pytest.raises(OSError, match=f"^{path}: is {kind}"):
            files.write_whole(path, b"new")
        assert os.stat(path).st_mode == mode
    server.close()
    with pytest.raises(IsADirectoryError, match=f"^{tmp_path}: is a directory"):
        files.write_whole(tmp_path, b"new")
    assert len(os.listdir(tmp_path)) == 3


def test_errors_name_the_path_that_was_given(tmp_path, monkeypatch):
    (tmp_path / "plain").touch()
    for name, kind in (("none/file", FileNotFoundError), ("plain/file", NotADirectoryError)):
        with pytest.raises(kind) as caught:
            files.write_whole(tmp_path / name, b"new")
        assert caught.value.filename == str(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="'none/file'"):
        files.write_whole("none/file", b"new")


KILLED = """
import os, signal, sys
from frozen_kernels import files
def stop(*_):
    print("ready", flush=True)
    {stop}
setattr(os, "replace", stop)
files.write_whole(sys.argv[1], b"new")
"""


@pytest.mark.skipif(files.fcntl is None, reason="a lock tells who lives")
def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_not(tmp_path):
    path = tmp_path / "file"
    command = [sys.executable, "-c", KILLED.format(stop="os.kill(os.getpid(), signal.SIGKILL)"), path]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    command[2] = KILLED.format(stop="sys.stdin.read(); os.rename(*_)")
    living = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    living.stdout.readline()
    (own,) = set(os.listdir(tmp_path)) - {left}
    assert len(os.listdir(tmp_path)) == 1  # the second writer has cleaned up after the first
    files.write_whole(tmp_path / "other", "another file's writer cleans nothing up here")
    files.write_whole(path, b"third")
    assert set(os.listdir(tmp_path)) == {own, "file", "other"} and path.read_bytes() == b"third"
    living.communicate()
    assert living.returncode == 0 and path.read_bytes() == b"new"
    assert set(os.listdir(tmp_path)) == {"file", "other"}


def test_writers_of_one_file_do_not_meet(tmp_path):
    """Each removes what it takes for left behind, at once with the others; every write succeeds."""
    path, errors = tmp_path / "file", []

    def write(text):
        try:
            for _ in range(10):
                files.write_whole(path, text * 1000)
        except BaseException as why:
            errors.append(why)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and os.listdir(tmp_path) == ["file"]
    assert path.read_text() in [letter * 1000 for letter in "abcd"]


def test_no_user_file_without_a_home(monkeypatch, tmp_path):
    for name in ("TABLE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    nowhere = files.user_file("table.json", "TABLE")
    assert nowhere.parent == files.NOWHERE and not nowhere.exists()
    monkeypatch.setenv("TABLE", str(tmp_path / "given"))
    assert files.user_file("table.json", "TABLE") == tmp_path / "given"


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to become another user")
def test_no_user_file_in_a_home_of_somebody_else(tmp_path):
    (tmp_path / "home").mkdir(0o700)
    program = """
import os
from frozen_kernels import files
os.setuid(12345)
print(files.user_file("table.json", "TABLE"))
"""
    env = {k: v for k, v in os.environ.items() if k not in ("TABLE", "XDG_CACHE_HOME")} | {
        "HOME": str(tmp_path / "home")
    }
    found = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(files.NOWHERE / "table.json")
