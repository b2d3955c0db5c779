"""Headers of our own: what a client may send, and what an answer carries. A new one is a line here and its reader."""

ARM = "x-draftpick-arm"
TIMEOUT = "x-draftpick-timeout"
PRIORITY = "x-draftpick-priority"
POLICY = "x-draftpick-policy"
REQUEST_ID = "x-draftpick-request-id"
ATTEMPTS = "x-draftpick-attempts"
CLIENT_REQUEST_ID = "x-request-id"

OF_REQUESTS = {
    ARM: "The engine that shall answer; needs the scope `admin` where keys are configured.",
    TIMEOUT: "Seconds that the client waits for the first byte.",
    PRIORITY: "`low`, `normal` or `high`: who waits, and who is rejected first, under overload.",
    CLIENT_REQUEST_ID: f"Comes back as {REQUEST_ID}, and stands in the records.",
}
"""What clients may send, with its description in the OpenAPI document."""
