"""Stages: each module is a frozen config and `run(config, run_dir, fresh=False)`; nothing is imported here."""
