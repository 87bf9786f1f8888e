"""Verification: completion × reference answer → Verdict, by named extraction rules and killable graders."""

from __future__ import annotations

from w2sr.verify.extraction import Extraction, extract, parse_rules
from w2sr.verify.verifier import Verifier, usable_references

__all__ = ["Extraction", "Verifier", "extract", "parse_rules", "usable_references"]
