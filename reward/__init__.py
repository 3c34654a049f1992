"""Scoring candidate answers: rules, judges and their combination, in a pipeline or alone."""
