"""`python -m rental`: see rental.app."""

from rental.app import main

main()
