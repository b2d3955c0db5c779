"""Generated files: chart schema, manifests, dashboard and pages of `docs/`.

`python -m draftpick.deploy.generate` writes all of them into a checkout, `python -m draftpick.deploy.generate.NAME` one
of them; tests check that they are up to date.
"""
