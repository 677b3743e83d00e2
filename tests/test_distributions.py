"""What people download: the source distribution and the wheel."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_both_distributions_have_the_licence(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    licence = (REPOSITORY / "LICENSE").read_text()
    (source,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(source) as archive:
        (member,) = [one for one in archive.getmembers() if one.name.endswith("/LICENSE") and one.name.count("/") == 1]
        found = archive.extractfile(member)
        assert found is not None
        assert found.read().decode() == licence
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        assert packed.read(name).decode() == licence
        (metadata,) = [name for name in packed.namelist() if name.endswith(".dist-info/METADATA")]
        assert "License-Expression: Apache-2.0\n" in packed.read(metadata).decode()
