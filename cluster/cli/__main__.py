"""`python -m outrider.cluster.cli` is the `outrider` command."""

from outrider.cluster.cli.app import main

main()
