"""Bundles as bytes: packed so that the same files always make the same bytes, unpacked within bounds."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from typing import Any

from airflow_team_authz.opa.errors import OpaError

MAX_BYTES = 64 * 1024 * 1024
MANIFEST = ".manifest"

# What reading a broken archive may raise; a lookup is of a link to nowhere.
_UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, AttributeError, LookupError, RecursionError)


# More than these are refused before anybody knows who has signed: each takes memory.
_MAX_MEMBERS = 100_000
_MAX_NAME_BYTES = 8 * 1024
_LONG_NAMES = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
# Parts of a path that a plain name has none of.
_NO_STEPS = frozenset({"", ".", ".."})
_KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, *_LONG_NAMES)


class BundleRefusedError(OpaError):
    """A bundle or artifact is not what it has to be: nothing of it counts, and the message says what is wrong."""


def pack(files: Mapping[str, bytes], level: int = 6) -> bytes:
    """A gzipped tar of files by name, as OPA reads it. Neither time, user nor machine is in it."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0, compresslevel=level) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(files):
            member = tarfile.TarInfo(f"/{name}")
            member.size = len(files[name])
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(files[name]))
    return packed.getvalue()


def unpack(content: bytes, limit: int = MAX_BYTES) -> dict[str, bytes]:
    """The files of a gzipped tar by name, without a leading slash.

    ``BundleRefusedError`` for anything that is no plain file under a plain name, for two of the same name, and for
    what unpacks to more than ``limit`` bytes.
    """
    try:
        with gzip.open(io.BytesIO(content)) as compressed:
            # All at once, and not member by member: headers, too, may unpack to a lot.
            plain = compressed.read(limit + 1)
        if len(plain) > limit:
            raise BundleRefusedError(f"it unpacks to more than {limit >> 20} MiB")
        files: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:", tarinfo=_Member) as archive:
            for number, member in enumerate(iter(archive.next, None)):
                archive.members.clear()  # type: ignore[attr-defined]
                if number >= _MAX_MEMBERS:
                    raise BundleRefusedError(f"it holds more than {_MAX_MEMBERS} files")
                if member.isdir():
                    continue
                name = member.name.removeprefix("./").lstrip("/")
                if "\\" in name or "\0" in name or not _NO_STEPS.isdisjoint(name.split("/")):
                    raise BundleRefusedError(f"{member.name!r} in it is not a plain file name")
                if name in files:
                    raise BundleRefusedError(f"{name} is in it twice")
                # A thousand teams have thousands of files, and the archive's own way of reading takes as long as all
                # the rest.
                files[name] = plain[member.offset_data : member.offset_data + member.size]
                if len(files[name]) != member.size:
                    raise BundleRefusedError(f"{name} in it is cut off")
        return files
    except _UNREADABLE as error:
        raise BundleRefusedError(f"it cannot be read: {error}") from None


class _Member(tarfile.TarInfo):
    """Refuses, before it is read, what is neither a plain file nor a directory.

    What global headers say is copied to each member, and the map of a sparse file may be larger than the file.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in _KINDS:
            raise BundleRefusedError(f"{self.name!r} in it is no plain file")
        if self.type in _LONG_NAMES:
            if self.size > _MAX_NAME_BYTES:
                raise BundleRefusedError("the header of a file in it is too long")
            start = archive.fileobj.tell()
            if b"GNU.sparse" in archive.fileobj.read(self.size):
                raise BundleRefusedError(f"{self.name!r} in it is no plain file")
            archive.fileobj.seek(start)
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


def canonical(value: Any) -> bytes:
    """JSON in the one form whose bytes are what OPA hashes when it checks a signature (its ``bundle/hash.go``)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # Go writes these two as escapes.
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").encode()


def read_manifest(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The manifest, with its ``metadata`` in any case an object; ``BundleRefusedError`` if there is none."""
    try:
        manifest = json.loads(files[MANIFEST])
        manifest.setdefault("metadata", {})
        if isinstance(manifest["metadata"], dict):
            return dict(manifest)
    except KeyError:
        raise BundleRefusedError("it has no manifest") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise BundleRefusedError(f"its manifest cannot be read: {error}") from None
    raise BundleRefusedError("its manifest's metadata is not an object")


def manifest_of(packed: bytes) -> dict[str, Any]:
    """The manifest of a bundle that ``pack`` has made, which is its first file: nothing else is unpacked."""
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        first = archive.next()
        file = archive.extractfile(first) if first and first.name == f"/{MANIFEST}" else None
        return read_manifest({MANIFEST: file.read()} if file else {})


def load_json(content: bytes) -> Any:
    """JSON whose numbers mean the same to both engines: 1e3 and 1000.0 are 1000. ``ValueError`` if it is none."""
    return json.loads(content.decode(), parse_float=_number)


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def digest(files: Mapping[str, bytes]) -> str:
    """Twelve hexadecimal digits of names and content."""
    found = hashlib.sha256()
    for name, content in sorted(files.items()):
        found.update(b"%d %d\0" % (len(name.encode()), len(content)) + name.encode() + content)
    return found.hexdigest()[:12]
