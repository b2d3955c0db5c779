"""Where stored responses of `/v1/responses` are: their state lives in one replica alone."""

from collections import OrderedDict

from draftpick.router.errors import NotFound

_MAX_KNOWN = 65_536


class StoredResponses:
    """Addresses of the replicas that hold the latest responses, by id."""

    def __init__(self, max_known: int = _MAX_KNOWN) -> None:
        self._max_known = max_known
        self._holders: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def add(self, response_id: object, url: str, key: str) -> None:
        """Record the response that a replica gave to a request of this API key."""
        if isinstance(response_id, str):
            self._holders[response_id] = url, key
            if len(self._holders) > self._max_known:
                self._holders.popitem(last=False)

    def holder(self, response_id: str, key: str) -> str | None:
        """The address of the replica with a response; None if it is not known. Raises `NotFound` for another's."""
        url, owner = self._holders.get(response_id, (None, key))
        if owner != key:
            raise NotFound(f"Response with id {response_id!r} not found.", param="response_id")
        return url
