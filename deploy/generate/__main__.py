"""Writes all generated files."""

from draftpick.deploy.generate import cli_page, config_page, dashboard, manifests, metrics_page

for part in (manifests, dashboard, metrics_page, config_page, cli_page):
    part.main()
