"""What a router adds to a request, ours and its peers', before mock engines: `python -m tests.bench.overhead`."""
