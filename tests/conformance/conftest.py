"""Cases of public projects, read from the folder that ``QAK_CONFORMANCE`` names; collected only where it is set."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("QAK_CONFORMANCE") else ["test_*.py"]
