"""Without crcmod's C extension everything works, and the user is told once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import images

SCRIPT = """
import sys, warnings
sys.modules["crcmod._crcfunext"] = None  # as where no compiler was present: the import fails
sys.path.insert(0, sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import amistore, images
    container = images.packed([(1, {0: images.block(1), 9: images.block(0)})])
    images.read_streaming(container)
    images.read_seekable(container)
assert not sys.modules["crcmod.crcmod"]._usingExtension
(warning,) = [each for each in caught if "crcmod" in str(each.message)]
assert issubclass(warning.category, RuntimeWarning)
assert "pip install" in str(warning.message)
sys.stdout.buffer.write(container)
"""


def test_pure_python_crcmod_warns_once_and_gives_the_same_bytes() -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(images.__file__).parent)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == images.packed([(1, {0: images.block(1), 9: images.block(0)})])
