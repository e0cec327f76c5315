"""Renting a GPU by the hour at Vast, Salad or RunPod, and giving it back: `python -m rental --help`.

Deciding is pure (`market`, `cards`, `ledger.leftovers`, `keep.due`), doing is thin (`vast`, `salad`,
`runpod`, `ssh`, `rent`).
"""
