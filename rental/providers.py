"""The three providers behind one small interface, and where their keys come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from rental.api import Clock
from rental.errors import NoKeyError, UseError
from rental.market import Node, Offer, Wanted
from rental.runpod import RunPod
from rental.salad import Salad
from rental.vast import Vast

NAMES = ("vast", "salad", "runpod")
KEYS = {
    "vast": ("VAST_API_KEY",),
    "salad": ("SALAD_API_KEY", "SALAD_ORGANIZATION", "SALAD_PROJECT"),
    "runpod": ("RUNPOD_API_KEY",),
}
WHERE = {
    "vast": "https://cloud.vast.ai/manage-keys/",
    "salad": "https://portal.salad.com/api-key",
    "runpod": "https://console.runpod.io/user/settings",
}


class Provider(Protocol):
    """What renting needs of a provider. Every call may raise the errors of rental.errors."""

    name: str
    console: str  # where a person sees and ends what runs

    def offers(self, wanted: Wanted) -> list[Offer]:
        """What can be rented now, whether it fits or not."""

    def prepare(self, public_key: str) -> str:
        """Make the account let this ssh key in; a sentence for the person when that is theirs to do."""

    def create(self, offer: Offer, label: str, wanted: Wanted, public_key: str) -> str:
        """Rent it; the new node's id. OfferGoneError: try the next. UnansweredError: only the label tells."""

    def nodes(self) -> list[Node]:
        """Every node whose label is one of ours, over all pages."""

    def destroy(self, node_id: str) -> None:
        """End it and its bill; that it is gone already is no error."""

    def ends(self, kind: str) -> tuple[bool, str]:
        """Whether a node of this kind can end itself, and a sentence about that."""


def open_provider(name: str, secrets: Mapping[str, str], clock: Clock) -> Provider:
    """The provider of this name. Keys come from `secrets`: the environment, or what a playbook hands in."""
    if name not in NAMES:
        raise UseError(f"'{name}' is no provider known here. Mend: choose from {', '.join(NAMES)}.")
    lacking = [key for key in KEYS[name] if not secrets.get(key, "").strip()]
    if lacking:
        raise NoKeyError(
            f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not set: {name} cannot be asked. "
            "Mend: make a key at "
            f"{WHERE[name]} and set it in the environment (or in the vault, for the playbooks); never as an "
            "argument."
        )
    if name == "vast":
        return Vast(secrets, clock)
    if name == "salad":
        return Salad(secrets, clock)
    return RunPod(secrets, clock)


def with_keys(secrets: Mapping[str, str]) -> list[str]:
    """The providers whose keys are all set."""
    return [name for name in NAMES if all(secrets.get(key, "").strip() for key in KEYS[name])]
