"""Archives: the same bytes each time, and nothing odd comes out of one."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_team_authz.opa import archive as archives
from airflow_team_authz.opa.archive import BundleRefusedError, canonical, load_json, pack, read_manifest, unpack
from tests.conftest import REPOSITORY

FILES = {"teams/a/größe.rego": "package teams.a # ä".encode(), ".manifest": b"{}", "data.json": b'{"x": 1}'}


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def headers(kind: bytes, fields: int, members: int) -> bytes:
    """An archive in which each member has many fields."""
    said = b"".join(b"%d %07d=x\n" % (13, number) for number in range(fields))
    packed = io.BytesIO()
    for header in [kind] if kind == tarfile.XGLTYPE else [kind] * members:
        info = member("h", header)
        info.size = len(said)
        packed.write(info.tobuf() + said + bytes(-len(said) % 512) + member("x").tobuf())
    packed.write(member("y", tarfile.DIRTYPE).tobuf() * (members if kind == tarfile.XGLTYPE else 0))
    return gzip.compress(packed.getvalue() + bytes(1024))


def sparse(said: dict[str, str]) -> bytes:
    info = member("x")
    info.pax_headers = said
    return archive((info, b"1\n" * 4096))


def test_the_same_files_are_the_same_bytes() -> None:
    assert pack(FILES) == pack(dict(reversed(FILES.items())))
    assert unpack(pack(FILES)) == FILES
    assert unpack(archive((member("./data.json"), b"{}"), (member("teams", tarfile.DIRTYPE), b""))) == {
        "data.json": b"{}"
    }


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read"),
        (b"nonsense", "cannot be read"),
        (pack(FILES)[:-30], "cannot be read"),
        (gzip.compress(b"x" * 2048), "cannot be read"),
        (archive((member("../data.json"), b"{}")), "not a plain file name"),
        (archive((member("a/../../data.json"), b"{}")), "not a plain file name"),
        (archive((member("a//b"), b"{}")), "not a plain file name"),
        (archive((member("a\\b"), b"{}")), "not a plain file name"),
        (archive((member("data.json"), b"{}"), (member("/data.json"), b"[]")), "data.json is in it twice"),
        (archive((member("x", tarfile.SYMTYPE, "/etc/passwd"), b"")), "no plain file"),
        (archive((member("x", tarfile.LNKTYPE, "y"), b"")), "no plain file"),
        (archive((member("x", tarfile.FIFOTYPE), b"")), "no plain file"),
        (archive((member("x", tarfile.CHRTYPE), b"")), "no plain file"),
        (headers(tarfile.XGLTYPE, 1, 1), "no plain file"),
        (headers(tarfile.XHDTYPE, 1000, 1), "too long"),
        (headers(tarfile.GNUTYPE_LONGNAME, 1000, 1), "too long"),
        (archive((member("x", tarfile.GNUTYPE_SPARSE), b"")), "no plain file"),
        (sparse({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "no plain file"),
        (gzip.compress(b"\0" * (2 << 20)), "unpacks to more than 1 MiB"),
    ],
    # a gzip header holds the time: content in a name would differ from one process to the next
    ids=[
        "nothing",
        "nonsense",
        "cut",
        "no tar",
        "parent",
        "parent inside",
        "empty part",
        "backslash",
        "twice",
        "link",
        "hard link",
        "pipe",
        "device",
        "global header",
        "long header",
        "long name",
        "sparse",
        "sparse in a header",
        "bomb",
    ],
)
def test_what_is_odd_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(BundleRefusedError, match=told):
        unpack(content, 1 << 20)


_UNPACK = """
import resource, sys
from airflow_team_authz.opa import archive as archives
from airflow_team_authz.opa.archive import BundleRefusedError, unpack
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    unpack(sys.stdin.buffer.read())
except BundleRefusedError as refused:
    print(refused)
"""


def test_a_bomb_takes_no_memory() -> None:
    bomb = headers(tarfile.XGLTYPE, 100_000, 3_000)
    done = subprocess.run([sys.executable, "-c", _UNPACK], input=bomb, capture_output=True, cwd=REPOSITORY, check=True)
    assert b"no plain file" in done.stdout


def test_members_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 3)
    assert unpack(pack(FILES)) == FILES
    with pytest.raises(BundleRefusedError, match="more than 3 files"):
        unpack(pack({**FILES, "x": b""}))


@given(st.binary(max_size=600))
def test_any_bytes_are_refused_in_our_words(content: bytes) -> None:
    for attempt in (content, gzip.compress(content), pack(FILES)[: len(content)] + content):
        with suppress(BundleRefusedError):
            assert isinstance(unpack(attempt), dict)


@pytest.mark.parametrize("text", ['{"b": 1e3, "a": [1.10, -0, 12345678901234567890123]}', '"\\u2028<&>\\u0007\\b/é🚀"'])
def test_numbers_and_texts_stay_what_they_were(text: str) -> None:
    assert json.loads(canonical(load_json(text.encode()))) == json.loads(text)
    assert canonical(load_json(b'{"b": 1e3, "a": [1.10, 2.0, 1e300]}')) == b'{"a":[1.1,2,1e+300],"b":1000}'


@pytest.mark.parametrize("manifest", [None, b"", b"[]", b"{", b'{"metadata": 1}', b"\xff"])
def test_a_manifest_that_is_none_is_told(manifest: bytes | None) -> None:
    with pytest.raises(BundleRefusedError, match="manifest"):
        read_manifest({} if manifest is None else {".manifest": manifest})
