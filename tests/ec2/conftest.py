"""Without botocore there is nothing to compare with."""

from __future__ import annotations

import importlib.util
import os

if importlib.util.find_spec("botocore") is None and not os.environ.get("AMISTORE_REQUIRE_TOOLS"):
    collect_ignore_glob = ["test_*"]
