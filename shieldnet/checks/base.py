"""What all checks are."""

from shieldnet.attacks.base import Measurement


class Check(Measurement):
    """A measurement that is not an attack: it explains what attacks found, or says what is kept.

    Called with a game, it returns what it found, as an ``Attack`` does, and declares it the same
    way; a ``Tier`` has checks of their own.
    """
