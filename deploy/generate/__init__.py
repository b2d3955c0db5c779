"""What follows from the code: chart schema, manifests, dashboard and pages of `docs/`.

`python -m deploy.generate` writes all in a checkout, `python -m deploy.generate.NAME` one; tests hold them up to date.
"""
