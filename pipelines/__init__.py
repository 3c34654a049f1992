"""Putting stages together: the catalogue of stages, YAML pipelines, the runner, the report and the command line."""
