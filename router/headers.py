"""Names of headers of our own. What clients may send is described in `draftpick.router.http.request_headers`."""

ARM = "x-draftpick-arm"
TIMEOUT = "x-draftpick-timeout"
PRIORITY = "x-draftpick-priority"
POLICY = "x-draftpick-policy"
REQUEST_ID = "x-draftpick-request-id"
ATTEMPTS = "x-draftpick-attempts"
CLIENT_REQUEST_ID = "x-request-id"
