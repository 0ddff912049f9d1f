"""How long tests wait for what is promised soon: other programs may hold this machine up for as long as it likes."""

AT_ONCE_S = 15.0  # what waits for nothing but its turn on a processor
NOTICED_S = 45.0  # that a rank is lost: 10 on a machine of one's own, as its deadlines say (test_reconcile.py)
