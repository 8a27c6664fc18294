"""All outbound bytes. Two policies: addresses that the user configured, and addresses that were found somewhere.

``configured`` is what the user put into code, command line or environment: any host, the environment's proxies.
``found`` is what came inside a message, a tool result or a file: public addresses only, checked as names, again after
they were resolved and again at every redirect; no proxy, no credentials. Either way: http and https, at most 10
redirects, bounded bytes, bounded time, and only the codings identity and gzip.
"""

from __future__ import annotations

from qwen_agent_kit.net.address import Address, canonical, is_public
from qwen_agent_kit.net.transfer import MAX_REDIRECTS, SECONDS, Fetched, Reply, check_url, fetch, open_url
from qwen_agent_kit.net.transport import SYSTEM, Deadline, Network, Transport, Trust

__all__ = [
    "Address",
    "Deadline",
    "Fetched",
    "MAX_REDIRECTS",
    "Network",
    "Reply",
    "SECONDS",
    "SYSTEM",
    "Transport",
    "Trust",
    "canonical",
    "check_url",
    "fetch",
    "is_public",
    "open_url",
]
