"""Small complete programs that use a running router: by handle, by URL, and by its records."""
