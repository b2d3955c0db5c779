"""What follows from the code: chart schema, manifests, dashboard and pages of `docs/`.

`python -m draftpick.deploy.generate` writes all in a checkout, `python -m draftpick.deploy.generate.NAME` one; tests
hold them up to date.
"""
