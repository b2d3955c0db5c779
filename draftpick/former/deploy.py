"""In a wheel this is the top-level module `deploy`, the import name of the release before."""

from draftpick.former_names import redirect

redirect(__name__)
