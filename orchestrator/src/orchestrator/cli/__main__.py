"""Run ``hotline`` from a checkout: ``python -m orchestrator.cli``."""

from orchestrator.cli import main

main()
