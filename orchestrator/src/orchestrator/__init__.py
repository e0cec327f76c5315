"""Who may speak on the line, to which engine, and whether the line is well.

Public: ``orchestrator.app.create_app`` (the ASGI application), ``orchestrator.settings.Settings`` and
``orchestrator.__version__``. Everything else serves these.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("hotline-orchestrator")
except PackageNotFoundError:  # run from a checkout, as the tests do
    __version__ = "0+unknown"
