"""duplex: many conversations with Moshi on one GPU, each as quick as if it were alone.

``python -m duplex`` serves, ``python -m duplex.bench`` measures. docs/duplex.md explains.
"""

VERSION = "1"
"""Of the engine: raised when what a card can do may have changed."""
