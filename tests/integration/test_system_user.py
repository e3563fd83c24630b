"""The system user of the embedded server, made by several first starts at once; on a copy of /etc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_CHOOSE = "from iceburg.database.embedded_process import choose_user; print(f' {choose_user(None).uid} ', flush=True)"
# A private view of the file system, in which /etc is a copy without that user.
_AT_ONCE = """
mount --bind "$1" /etc
userdel iceburg 2>/dev/null
for n in 1 2 3 4; do "$2" -c "$3" & done
wait
getent passwd iceburg | cut -d: -f3
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("useradd") is None, reason="only root makes the system user")
@pytest.mark.parametrize("turn", range(3))
def test_first_starts_at_once_agree_on_one_user(tmp_path: Path, turn: int) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    for name in ("passwd", "group", "shadow", "gshadow", "login.defs", "nsswitch.conf", "ld.so.cache"):
        if (Path("/etc") / name).exists():
            shutil.copy2(Path("/etc") / name, etc / name)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _AT_ONCE, "sh", str(etc), sys.executable, _CHOOSE],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no private view of the file system here: {done.stderr.strip()}")
    numbers = done.stdout.split()
    assert len(numbers) == 5, done.stderr
    assert len(set(numbers)) == 1
