"""Fail unless the junit report of the last test run holds conformance cases that ran."""

from __future__ import annotations

import sys
from xml.etree import ElementTree


def main(report: str) -> None:
    cases = ElementTree.parse(report).iter("testcase")
    ran = [case for case in cases if "conformance" in case.get("classname", "") and case.find("skipped") is None]
    if not ran:
        sys.exit("error: the conformance folder exists and no case of it ran")


if __name__ == "__main__":
    main(sys.argv[1])
