"""What can go wrong, in sentences that name the mend. None of them ever carries a key."""

from __future__ import annotations


class RentalError(Exception):
    """The root of all of them. The text is for whoever typed the command; `status` is the exit status."""

    status = 1


class NoKeyError(RentalError):
    """A provider's key, or what belongs to it, is not set."""

    status = 2


class UseError(RentalError):
    """An argument that cannot be meant: an unknown card, a line that exists already, a price of nothing."""

    status = 2


class RefusedError(RentalError):
    """The provider does not accept the key, or the key may not do this."""


class QuotaError(RentalError):
    """The account may not rent more, or has no money left: another offer would not help."""


class OfferGoneError(RentalError):
    """Somebody else has it, or its price changed. The next offer may do."""


class UnansweredError(RentalError):
    """No answer to the call that creates: it may have worked. Only the label tells."""


class ProviderError(RentalError):
    """The provider answers with an error, or not at all, after every repetition."""


class NodeError(RentalError):
    """This node does not become a line. It is destroyed and the next offer is tried."""


class NoOfferError(RentalError):
    """Nothing on the market is what was asked for."""


class StillRunningError(RentalError):
    """A node could not be destroyed: it goes on costing money."""

    status = 4
