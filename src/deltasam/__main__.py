"""``python -m deltasam``."""

from deltasam.cli import main

main()
