"""duplex: many conversations with Moshi on one GPU, each as quick as if it were alone.

``python -m duplex`` serves, ``python -m duplex.bench`` measures. docs/duplex.md explains.
"""
