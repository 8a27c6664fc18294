"""``python -m qwen_agent_kit`` is ``qak``."""

from __future__ import annotations

from qwen_agent_kit.cli import main

if __name__ == "__main__":
    main()
