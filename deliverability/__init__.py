"""Preflight: what can be known about a message before anybody gets it. A plain library; `docs/deliverability.md`."""
