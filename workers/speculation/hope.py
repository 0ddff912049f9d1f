"""Which sequences the drafter goes on following, and when one that drafts nothing is asked again. Pure counting.

A sequence whose drafts do not pay is let go after a while, so that its upkeep ends too; it is tried again after ever
longer waits, and followed a few rounds ahead of that, so that the drafter has some context then.
"""

_TRIES = 2  # first drafts of a sequence, whatever the fleet's acceptance
_LET_GO = 4  # rounds without drafts
_FIRST_WAIT, _LONGEST_WAIT = 32, 256  # rounds without drafts before a probe
_AHEAD = 2  # rounds that it is followed before
_ROUNDS = 2  # of one probe


class Hope:
    """One sequence's."""

    __slots__ = ("_tries", "_wait", "idle")

    def __init__(self) -> None:
        self.idle = 0  # rounds since it was worth drafting for
        self._tries, self._wait = 0, _FIRST_WAIT

    @property
    def followed(self) -> bool:
        """Whether the drafter should take its tokens in."""
        return self.idle < _LET_GO or self.idle >= self._wait - _AHEAD

    @property
    def waits(self) -> int:
        """Rounds until it is followed again; 0: it is."""
        return 0 if self.followed else self._wait - _AHEAD - self.idle

    @property
    def due(self) -> bool:
        """Whether it is to be tried in spite of what is expected of it."""
        return self._tries < _TRIES or self.idle >= self._wait

    def worth(self) -> None:
        """It is worth drafting for."""
        self.idle, self._wait, self._tries = 0, _FIRST_WAIT, _TRIES

    def tried(self) -> None:
        """A draft was made for it although it did not seem worth it."""
        if self._tries < _TRIES:
            self._tries += 1
        elif self.idle >= self._wait + _ROUNDS - 1:
            self.idle, self._wait = _LET_GO, min(2 * self._wait, _LONGEST_WAIT)
        else:
            self.idle += 1

    def let_go(self) -> None:
        """The drafter follows nobody at present, and knows less of it from now on."""
        self.idle, self._tries = max(self.idle, _LET_GO), _TRIES

    def stood(self) -> None:
        """A draft that did not seem worth it was accepted: another follows. Once in a while is too little."""
        self.idle, self._tries = 1, max(self._tries - 1, 0)

    def passed(self, rounds: int = 1, *, trial: bool = True) -> None:
        """So many without drafts. Without a `trial` in view it does not get that far: following it is not for free."""
        self.idle += rounds
        if not trial:
            self.idle = min(self.idle, self._wait - _AHEAD - 1)
