"""The vocabulary of the pipeline, the models and their training: rows, stages, artifacts, engines, SFT and DPO."""
