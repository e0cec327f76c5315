"""What holds for every test: the same code gives the same answer, today and on another machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("soak", max_examples=5000, deadline=None)  # `make soak`: new examples every time
settings.load_profile("suite")
