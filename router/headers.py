"""Names of Draftpick's own headers. `draftpick.router.http.request_headers` describes those of requests."""

ARM = "x-draftpick-arm"
TIMEOUT = "x-draftpick-timeout"
PRIORITY = "x-draftpick-priority"
POLICY = "x-draftpick-policy"
REQUEST_ID = "x-draftpick-request-id"
ATTEMPTS = "x-draftpick-attempts"
CLIENT_REQUEST_ID = "x-request-id"
