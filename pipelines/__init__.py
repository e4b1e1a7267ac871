"""The command line: one file a stage, each a plain ``run(settings)``, and the Hydra app that runs them in order."""
