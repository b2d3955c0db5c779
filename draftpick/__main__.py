"""`python -m draftpick`: the command line."""

from draftpick.deploy.cli.main import main

main()
